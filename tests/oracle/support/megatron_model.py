"""A dense Megatron model of a few layers in real torch on tensors without data, and its events.

Modules are functions with the variables of Megatron's, so that they live as long. One micro-batch is
run; the fp32 gradient buffer exists, each parameter's gradient is dropped by a hook as DDP does.
Used by: oracle/test_megatron_functions.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from memcalc.harness.watch.tracker import Alloc, StorageTracker
from tests.oracle.support import megatron_functions as te
from tests.oracle.support.megatron_functions import BF16, Parallel


@dataclass
class Shape:
    """Dims of one rank: s positions, b sequences, a and k heads of width d, f columns, V rows."""

    s: int
    b: int
    h: int
    a: int
    k: int
    d: int
    f: int
    V: int
    layers: int = 3
    how: Parallel = field(default_factory=Parallel)
    llama: bool = True  # rotary, SwiGLU, RMSNorm, no biases; else learned, GELU, LayerNorm, biases
    dropout: float = 0.0
    fused_loss: bool = True
    recompute: str = "none"


class Model:
    """Parameters and the forward pass."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.params: dict[str, Tensor] = {}

    def p(self, name: str, *size: int, norm: bool = False) -> Tensor:
        """A parameter, its dummy gradient and DDP's hook."""
        if name not in self.params:
            made = torch.empty(size, dtype=BF16, device="meta", requires_grad=True)
            made.is_norm = norm  # type: ignore[attr-defined]
            made.dummy = torch.empty(size, dtype=BF16, device="meta")  # type: ignore[attr-defined]
            made.register_post_accumulate_grad_hook(_drop)
            self.params[name] = made
        return self.params[name]

    def norms(self, name: str) -> list[Tensor]:
        h = self.shape.h
        kinds = ["weight"] if self.shape.llama else ["weight", "bias"]
        return [self.p(f"{name}.{kind}", h, norm=True) for kind in kinds]

    def bias(self, name: str, width: int) -> list[Tensor]:
        return [] if self.shape.llama else [self.p(f"{name}.bias", width)]

    def query_key_value(self, i: int, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.shape
        width, group = (c.a + 2 * c.k) * c.d, c.a // c.k
        weight = self.p(f"{i}.qkv", width, c.h)
        rest = [*self.norms(f"{i}.n1"), *self.bias(f"{i}.qkv", width)]
        mixed = te.NormLinear.apply(c.how, hidden_states, weight, *rest)
        mixed = mixed.view(*mixed.shape[:2], c.k, (group + 2) * c.d)
        query, key, value = te.Split.apply(mixed, [group * c.d, c.d, c.d])
        return query.reshape(*query.shape[:2], c.a, c.d), key, value

    def attention(self, i: int, hidden_states: Tensor) -> tuple[Tensor, list[Tensor]]:
        c = self.shape
        query, key, value = self.query_key_value(i, hidden_states)
        if c.llama:
            query = te.Rope.apply(query)
            key = te.Rope.apply(key)
        if c.recompute == "selective":
            out = checkpoint(self.core, query, key, value, use_reentrant=True)
        else:
            out = self.core(query, key, value)
        out = out.reshape(*out.shape[:2], c.a * c.d)
        weight = self.p(f"{i}.proj", c.h, c.a * c.d)
        bias = self.bias(f"{i}.proj", c.h)
        return te.Linear.apply(c.how, out, weight), bias

    def core(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        one = query.untyped_storage()._cdata == key.untyped_storage()._cdata
        if not one:
            query, key, value = (x.contiguous() for x in (query, key, value))
        out: Tensor = te.Attention.apply(query, key, value)
        return out

    def mlp(self, i: int, hidden_states: Tensor) -> tuple[Tensor, list[Tensor]]:
        c = self.shape
        width = c.f * (2 if c.llama else 1)
        weight, bias = self.p(f"{i}.fc1", width, c.h), self.bias(f"{i}.fc1", width)
        inner = te.NormLinear.apply(c.how, hidden_states, weight, *self.norms(f"{i}.n2"))
        inner = te.Activation.apply(c.llama, inner, *bias)
        weight = self.p(f"{i}.fc2", c.h, c.f)
        bias = self.bias(f"{i}.fc2", c.h)
        return te.Linear.apply(c.how, inner, weight), bias

    def joined(self, branch: tuple[Tensor, list[Tensor]], residual: Tensor) -> Tensor:
        x, bias = branch
        if not self.shape.dropout and not bias:
            return residual + x
        out: Tensor = te.BiasDropoutAdd.apply(self.shape.dropout, x, residual, *bias)
        return out

    def layer(self, i: int, hidden_states: Tensor) -> Tensor:
        hidden_states = self.joined(self.attention(i, hidden_states), hidden_states)
        return self.joined(self.mlp(i, hidden_states), hidden_states)

    def embed(self, ids: Tensor) -> Tensor:
        c = self.shape
        weight = self.p("embedding", c.V, c.h)
        if c.how.tp > 1:
            mask = torch.empty(ids.shape, dtype=torch.bool, device="meta")
            own = torch.empty(ids.shape, dtype=torch.int64, device="meta")
            x = te.ZeroRows.apply(F.embedding(own, weight), mask)
        else:
            x = F.embedding(ids, weight)
        if not c.llama:
            where = torch.empty(ids.shape, dtype=torch.int64, device="meta")
            x = x + F.embedding(where, self.p("positions", c.s, c.h))
            del where
        x = x.transpose(0, 1).contiguous()
        return te.ScatterRows.apply(x, c.how.tp) if c.how.sp else x

    def forward(self, ids: Tensor) -> Tensor:
        c = self.shape
        decoder_input = self.embed(ids)
        hidden_states = decoder_input
        for i in range(c.layers):
            if c.recompute == "full":
                hidden_states = checkpoint(self.layer, i, hidden_states, use_reentrant=True)
            else:
                hidden_states = self.layer(i, hidden_states)
        hidden_states = FinalNorm.apply(hidden_states, *self.norms("final"))
        loss = self.loss(te.Head.apply(c.how, hidden_states, self.p("head", c.V, c.h)))
        del decoder_input
        return loss

    def loss(self, logits: Tensor) -> Tensor:
        function: Any = te.InPlaceLoss if self.shape.fused_loss else te.ParallelLoss
        losses = function.apply(logits)
        out: Tensor = te.MeanLoss.apply(losses)
        return out


class FinalNorm(torch.autograd.Function):
    """te.RMSNorm or te.LayerNorm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *norms: Tensor) -> Tensor:
        out = te.like(x, *x.shape)
        rows = x.numel() // x.shape[-1]
        ctx.save_for_backward(x, *norms, *(te.like(x, rows, dtype=torch.float32) for _ in norms))
        ctx.count = len(norms)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, *others = ctx.saved_tensors
        dx = te.like(x, *x.shape)
        return (dx, *(te.like(x, *one.shape) for one in others[: ctx.count]))


def _drop(param: Tensor) -> None:
    """DDP's hook: the gradient is added to the buffer and dropped."""
    param.grad = None


#: Bytes of an allocation, and the bytes freed before the next one, sorted.
Row = tuple[int, tuple[int, ...]]


def rows(shape: Shape, model: Model | None = None) -> tuple[list[Row], int]:
    """Every allocation of one micro-batch, and how many of them are forward's."""
    model = model or Model(shape)
    model.forward(torch.empty((shape.b, shape.s), dtype=torch.int64, device="meta"))
    ids = torch.empty((shape.b, shape.s), dtype=torch.int64, device="meta")
    with StorageTracker("meta") as tracker:
        for param in model.params.values():
            te.dummy(param)  # so that the tracker knows it
        start = len(tracker.events)
        loss = model.forward(ids)
        made = sum(isinstance(event, Alloc) for event in tracker.events[start:])
        loss.backward(torch.empty_like(loss))
    gathered: list[tuple[int, list[int]]] = []
    for event in tracker.events[start:]:
        if isinstance(event, Alloc):
            gathered.append((event.nbytes, []))
        elif gathered:
            gathered[-1][1].append(event.nbytes)
    return [(size, tuple(sorted(freed))) for size, freed in gathered], made

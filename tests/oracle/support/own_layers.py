"""The Llama layer as torchtune and as torchtitan write it, in plain PyTorch, on tensors without data.

Written anew after what their modules compute and how long their variables live; only the order of
operators and the lifetimes matter here. `steps_of` runs one forward and backward under the tracker.
Letters: b sequences, s positions, V vocabulary, h hidden, a query heads, k key/value heads, f MLP width.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from memcalc.harness.watch.tracker import Alloc, StorageTracker
from memcalc.inputs.model import ModelConfig
from tests.oracle.support.engine import steps

_aten = torch.ops.aten
_FLASH = _aten._scaled_dot_product_flash_attention
BF16 = torch.bfloat16


def _linear(i: int, o: int) -> nn.Linear:
    return nn.Linear(i, o, bias=False, dtype=BF16)


class Norm(nn.Module):
    """x in fp32 over the root of its mean square, cast back, times the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=BF16))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x)
        return normed * self.weight


class Mlp(nn.Module):
    def __init__(self, h: int, f: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = _linear(h, f), _linear(h, f), _linear(f, h)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """Either layer; code: torchtune or torchtitan. packed: rotary rows are gathered by position."""

    def __init__(self, config: ModelConfig, code: str, packed: bool) -> None:
        super().__init__()
        h, d = config.hidden_size, config.head_dim
        self.a, self.k, self.d = config.num_attention_heads, config.num_key_value_heads, d
        self.code, self.packed = code, packed
        self.q, self.key, self.v = (_linear(h, n * d) for n in (self.a, self.k, self.k))
        self.o, self.mlp = _linear(self.a * d, h), Mlp(h, config.intermediate_size)
        self.norm1, self.norm2 = Norm(h), Norm(h)

    def forward(self, x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
        if self.code == "torchtitan":
            h = x + self._titan_attention(self.norm1(x), table)
            return h + self.mlp(self.norm2(h))
        h = self.norm1(x)
        attended = self._tune_attention(h, table, positions)
        h = attended + x
        fed = self.mlp(self.norm2(h))
        return h + fed

    def _tune_attention(self, x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
        b, s, _ = x.shape
        turn = partial(_turned, table=table, positions=positions if self.packed else None)
        q = turn(self.q(x).view(b, s, self.a, self.d))
        q = q.transpose(1, 2)
        k, v = self.key(x), self.v(x)
        k = turn(k.view(b, s, self.k, self.d))
        k, v = (part.view(b, s, self.k, 1, self.d) for part in (k, v))
        if self.a != self.k:
            k = k.expand(b, s, self.k, self.a // self.k, self.d)
            v = v.expand(b, s, self.k, self.a // self.k, self.d)
        k = k.reshape(b, s, -1, self.d)
        v = v.reshape(b, s, -1, self.d)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        out = _FLASH(q, k, v, 0.0, True)[0]
        out = out.transpose(1, 2).contiguous().view(b, s, -1)
        return self.o(out)

    def _titan_attention(self, x: Tensor, table: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = self.q(x), self.key(x), self.v(x)
        q = q.view(b, s, self.a, self.d)
        k = k.view(b, s, self.k, self.d)
        v = v.view(b, s, self.k, self.d)
        q, k = _turned_complex(q, k, table)
        keys, values = self._widened(k), self._widened(v)
        q = q.transpose(1, 2)
        k = keys.transpose(1, 2)
        v = values.transpose(1, 2)
        out = _FLASH(q, k, v, 0.0, True)[0]
        out = out.transpose(1, 2).contiguous()
        out = out.view(b, s, -1)
        return self.o(out)

    def _widened(self, x: Tensor) -> Tensor:
        b, s, k, d = x.shape
        groups = self.a // k
        if groups == 1:
            return x
        return x.unsqueeze(3).expand(b, s, k, groups, d).reshape(b, s, self.a, d)


def _turned(x: Tensor, table: Tensor, positions: Tensor | None) -> Tensor:
    """Pairs of x rotated in fp32 by rows (cos, sin) of a table."""
    rows = table[: x.shape[1]] if positions is None else table[positions]
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    rows = rows.view(-1, pairs.shape[1], 1, pairs.shape[3], 2)
    out = torch.stack(
        [
            pairs[..., 0] * rows[..., 0] - pairs[..., 1] * rows[..., 1],
            pairs[..., 1] * rows[..., 0] + pairs[..., 0] * rows[..., 1],
        ],
        -1,
    )
    out = out.flatten(3)
    return out.type_as(x)


def _turned_complex(q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """q and k as complex numbers in fp32, times rows of a table."""
    q_ = torch.view_as_complex(q.float().reshape(*q.shape[:-1], -1, 2))
    k_ = torch.view_as_complex(k.float().reshape(*k.shape[:-1], -1, 2))
    table = table.view(1, q_.shape[1], 1, q_.shape[3])
    q_out = torch.view_as_real(q_ * table).flatten(3)
    k_out = torch.view_as_real(k_ * table).flatten(3)
    return q_out.type_as(q), k_out.type_as(k)


class Model(nn.Module):
    """Embedding, layers under a kind of recomputation, norm, head, loss."""

    def __init__(self, config: ModelConfig, code: str, how: dict[str, Any], packed: bool) -> None:
        super().__init__()
        self.config, self.code, self.how = config, code, how
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, dtype=BF16)
        self.layers = nn.ModuleList(
            Layer(config, code, packed) for _ in range(config.num_hidden_layers)
        )
        self.norm = Norm(config.hidden_size)
        tied = config.tie_word_embeddings
        self.head = None if tied else _linear(config.hidden_size, config.vocab_size)

    def hidden(self, ids: Tensor, table: Tensor, positions: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = self.run(layer, x, table, positions)
        return x

    def run(self, layer: nn.Module, *args: Tensor) -> Tensor:
        recompute = self.how.get("recompute", "none")
        if recompute == "none":
            return layer(*args)
        options = {"context_fn": every_second} if recompute == "sac" else {}
        return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False, **options)

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)

    def forward(self, ids: Tensor, table: Tensor, positions: Tensor) -> Any:
        x = self.hidden(ids, table, positions)
        if self.code == "torchtitan":
            x = self.norm(x)
            return self.logits(x)
        return self.unembedded(x)

    def unembedded(self, x: Tensor) -> Any:
        x = self.norm(x)
        if chunks := self.how.get("chunks"):
            return [self.logits(part) for part in x.tensor_split(chunks, dim=1)]
        return self.logits(x).float()

    def loss(self, found: Any, labels: Tensor) -> Tensor:
        if self.code == "torchtitan":
            return F.cross_entropy(found.flatten(0, 1).float(), labels.flatten(0, 1))
        if not isinstance(found, list):
            return F.cross_entropy(found.reshape(-1, found.size(-1)), labels.reshape(-1))
        rows = [part.reshape(-1) for part in labels.tensor_split(len(found), dim=1)]
        found = [part.reshape(-1, part.size(-1)) for part in found]
        total: Any = None
        for logits, row in zip(found, rows, strict=True):
            one = F.cross_entropy(logits.float(), row, reduction="sum")
            if total is None:
                total = one
            else:
                total += one
        return total / labels.numel()


_SAVED = {
    _aten.mm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
}


def every_second() -> Any:
    """Contexts that keep the attention kernel and every second product of matrices."""
    counts: dict[str, int] = defaultdict(int)

    def policy(ctx: Any, func: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        mode = "again" if ctx.is_recompute else "forward"
        counts[mode] += func is _aten.mm.default
        skipped = func is _aten.mm.default and counts[mode] % 2 == 0
        kept = func in _SAVED and not skipped
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def only_attention() -> Any:
    """Contexts that keep the attention kernel's results alone."""

    def policy(ctx: Any, func: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = func in _SAVED and func is not _aten.mm.default
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def steps_of(
    config: ModelConfig, code: str, shape: tuple[int, int], how: dict[str, Any], packed: bool = True
) -> list[tuple[int, list[int]]]:
    """Allocations of one forward and backward, each with the sizes freed before the next."""
    with torch.device("meta"):
        model = Model(config, code, how, packed)
        ids = torch.zeros(shape, dtype=torch.long)
        half = config.head_dim // 2
        complex_table = torch.empty(shape[1], half, dtype=torch.complex64)
        table = complex_table if code == "torchtitan" else torch.empty(2 * shape[1], half, 2)
    tracker = StorageTracker("meta")
    tracker.track(model, ids, table)
    before = {alloc.storage for alloc in tracker.live_storages()}
    with tracker:
        _micro_batch(model, ids, table)
    return steps(
        [
            event.nbytes if isinstance(event, Alloc) else -event.nbytes
            for event in tracker.events
            if event.storage not in before
        ]
    )


def _micro_batch(model: Model, ids: Tensor, table: Tensor) -> None:
    found = model(ids, table, ids)
    loss = model.loss(found, ids)
    del found
    loss.backward()

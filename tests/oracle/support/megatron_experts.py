"""A Megatron model whose MLPs are mixtures of experts, in real torch; see megatron_model.

Routing is torch's own operators. Variables live as long as theirs in Megatron.
Source: Megatron-Core 0.14, transformer/moe/{moe_layer,token_dispatcher,experts,shared_experts}.py.
Used by: oracle/test_megatron_experts.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.oracle.support import megatron_functions as te
from tests.oracle.support.megatron_expert_functions import (
    Column,
    Freed,
    Gate,
    Grouped,
    Moved,
    Permute,
    Sort,
    Unpermute,
    Weighted,
)
from tests.oracle.support.megatron_model import FinalNorm, Model, Shape


@dataclass
class Experts:
    """E experts, t a token, of width m on a rank, e of them on it; R rows after an exchange over ep."""

    E: int = 8
    t: int = 2
    m: int = 40
    n: int = 0
    ep: int = 1
    etp: int = 1
    sigmoid: bool = False
    wide: bool = False  # a router in fp32
    gate: bool = False  # of the shared expert
    recompute: tuple[str, ...] = ()
    capacity: str = "none"  # none | drop | pad
    C: int = 0  # rows an expert takes of a rank

    @property
    def e(self) -> int:
        return self.E // self.ep


class SparseModel(Model):
    """Every layer's MLP a mixture of experts."""

    def __init__(self, shape: Shape, experts: Experts) -> None:
        super().__init__(shape)
        self.experts = experts

    def layer(self, i: int, hidden_states: Tensor) -> Tensor:
        hidden_states = self.joined(self.attention(i, hidden_states), hidden_states)
        return self.joined((self.sparse(i, hidden_states), []), hidden_states)

    def sparse(self, i: int, hidden_states: Tensor) -> Tensor:
        """The norm before it, and what is computed again."""
        chosen = self.experts.recompute
        norms = self.norms(f"{i}.n2")

        def norm(x: Tensor) -> Tensor:
            out: Tensor = FinalNorm.apply(x, *norms)
            return out

        freed = Freed(norm, hidden_states) if "layernorm" in chosen else None
        normed = freed.outputs[0] if freed else norm(hidden_states)
        if "moe" in chosen:
            out = checkpoint(self.mixture, i, normed, use_reentrant=True)
        else:
            out = self.mixture(i, normed)
        if freed:
            freed.discard(out)
        return out

    def mixture(self, i: int, hidden_states: Tensor) -> Tensor:
        """custom_forward of MoELayer."""
        c = self.experts
        shape = hidden_states.shape
        residual = hidden_states
        tokens = hidden_states.view(-1, shape[-1])
        probs, routing_map = self.router(i, tokens)
        sent = c.C * c.E if c.capacity == "pad" else tokens.shape[0] * c.t
        hidden_states, row_id_map, permuted = Permute.apply(tokens, probs, sent)
        del probs, routing_map
        probs = permuted
        del permuted
        dispatched = hidden_states
        if c.ep > 1:
            dispatched, probs = Moved.apply(hidden_states, sent), Moved.apply(probs, sent)
        output, shared = self.compute(i, dispatched, probs, residual)
        return self.combine(output, shared, row_id_map, (sent, shape))

    def router(self, i: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        c = self.experts
        dtype = torch.float32 if c.wide else torch.bfloat16
        logits = Gate.apply(tokens, self.p(f"{i}.router", c.E, tokens.shape[1]), dtype)
        probs, routing_map = self.chosen(logits)
        if c.capacity != "none":
            probs, routing_map = self.dropped(probs, routing_map)
        return probs, routing_map

    def dropped(self, routing_probs: Tensor, routing_map: Tensor) -> tuple[Tensor, Tensor]:
        """apply_router_token_dropping."""
        _, capacity_indices = torch.topk(routing_probs, k=self.experts.C, dim=0, sorted=False)
        capacity_mask = torch.zeros_like(routing_probs).scatter(0, capacity_indices, 1).bool()
        if self.experts.capacity == "pad":
            final_map = capacity_mask
        else:
            final_map = torch.logical_and(routing_map, capacity_mask)
        final_probs = routing_probs * final_map
        return final_probs, final_map

    def chosen(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """topk_routing_with_score_function."""
        c = self.experts
        if c.sigmoid:
            scores = torch.sigmoid(logits.float()).type_as(logits)
            for_routing = scores + self.bias_of_experts()
            _, top_indices = torch.topk(for_routing, k=c.t, dim=1)
            scores = torch.gather(scores, dim=1, index=top_indices).type_as(logits)
            probs = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20) if c.t > 1 else scores
        else:
            scores, top_indices = torch.topk(logits, k=c.t, dim=1)
            probs = torch.softmax(scores, dim=-1, dtype=torch.float32).type_as(logits)
        routing_probs = torch.zeros_like(logits).scatter(1, top_indices, probs)
        routing_map = torch.zeros_like(logits).int().scatter(1, top_indices, 1).bool()
        return routing_probs, routing_map

    def bias_of_experts(self) -> Tensor:
        if not hasattr(self, "_bias"):
            self._bias = torch.empty(self.experts.E, dtype=torch.float32, device="meta")
        return self._bias

    def compute(
        self, i: int, rows: Tensor, probs: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """experts_compute: the shared expert, then gather, sort, products, sort, scatter."""
        c = self.experts
        shared = None
        if c.n and "shared_experts" in c.recompute:
            shared = checkpoint(self.shared, i, residual, use_reentrant=True)
        elif c.n:
            shared = self.shared(i, residual)
        dispatched, probs = self.sorted(rows, probs)
        made = self.products(i, dispatched, probs)
        return self.unsorted(made, rows.shape[0], probs.dtype), shared

    def sorted(self, rows: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        c = self.experts
        if c.etp > 1:
            rows, probs = (Moved.apply(one, one.shape[0] * c.etp) for one in (rows, probs))
        if c.e > 1 and c.capacity == "pad":
            return self.turned(rows, c.ep * c.etp, c.e), self.turned(probs, c.ep * c.etp, c.e)
        if c.e > 1:
            rows, probs = Sort.apply(rows, probs)
        return rows, probs

    def turned(self, x: Tensor, outer: int, inner: int) -> Tensor:
        """Chunks of one length, the second index outermost."""
        x = x.view(outer, inner, self.experts.C, *x.size()[1:])
        return x.transpose(0, 1).contiguous().flatten(start_dim=0, end_dim=2)

    def unsorted(self, rows: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        c = self.experts
        if c.e > 1 and c.capacity == "pad":
            rows = self.turned(rows, c.e, c.ep * c.etp)
        elif c.e > 1:
            (rows,) = Sort.apply(rows)
        if c.etp > 1:
            rows = Moved.apply(rows.to(dtype), count).to(rows.dtype)
        return rows

    def products(self, i: int, rows: Tensor, probs: Tensor) -> Tensor:
        """TEGroupedMLP."""
        c, h = self.experts, self.shape.h
        probs = probs.unsqueeze(-1)
        inner = Grouped.apply(rows, self.p(f"{i}.fc1e", c.e, 2 * c.m, h))
        freed = None
        if "moe_act" in c.recompute:
            freed = Freed(Weighted.apply, inner, probs)
            (inner,) = freed.outputs
        else:
            inner = Weighted.apply(inner, probs)
        out: Tensor = Grouped.apply(inner, self.p(f"{i}.fc2e", c.e, h, c.m))
        if freed:
            freed.discard(out)
        return out

    def combine(
        self, output: Tensor, shared: Tensor | None, places: Tensor, sizes: tuple[int, torch.Size]
    ) -> Tensor:
        if self.experts.ep > 1:
            output = Moved.apply(output, sizes[0])
        output = Unpermute.apply(output, places).view(sizes[1])
        return output if shared is None else output + shared

    def shared(self, i: int, x: Tensor) -> Tensor:
        """SharedExpertMLP."""
        c, h, how = self.experts, self.shape.h, self.shape.how
        inner = Column.apply(how, x, self.p(f"{i}.fc1s", 2 * c.n, h))
        inner = te.Activation.apply(True, inner)
        output: Tensor = te.Linear.apply(how, inner, self.p(f"{i}.fc2s", h, c.n))
        return output

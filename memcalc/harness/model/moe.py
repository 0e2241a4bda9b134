"""The mixture MLP: router, dispatch of token rows to experts, grouped products, combination.

Symbols: T = b s tokens, E experts of width m, t chosen a token, R = T t routed rows. Gate and up of all
experts are one weight (E, 2m, h), down is (E, h, m). Rows are sorted by expert, each expert's rows are
one part of a grouped product, and each result row is added to its token in place. No row is dropped.
Checked by: oracle/test_sparse_blocks.py, harness/test_decoder_hf.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcalc.engine.kernels import Kernels
from memcalc.harness.model.casting import DTYPES, Linear, cast_parameter
from memcalc.harness.model.mlp import Mlp, activate
from memcalc.harness.model.router import Router, StackedWeights
from memcalc.harness.watch.scopes import op
from memcalc.inputs.model import ModelConfig

_LIMIT = 7.0  # gpt-oss clamps gate and up there (its config's swiglu_limit)


def grouped_product(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Each group of rows (R, in) times its weight (E, out, in): (R, out). offsets: ends (E), int32."""
    known = getattr(F, "grouped_mm", None) or torch._grouped_mm
    out: Tensor = known(rows, weight.transpose(-2, -1), offs=offsets)
    return out


def rows_of_each(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Ids in the dtype that histc counts, integers on CUDA, floats alone on a CPU; how many of each."""
    as_counted = ids.float() if ids.device.type == "cpu" else ids.int()
    return as_counted, torch.histc(as_counted, bins=experts, min=0, max=experts - 1)


class Moe(nn.Module):
    """The mixture MLP of x (b, s, h), shared experts included."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        moe = config.moe
        assert moe is not None
        self.config, self.kernels, self.moe = config, kernels, moe
        h, m = config.hidden_size, moe.moe_intermediate_size
        self.router = Router(config, moe, kernels)
        self.expert_gate_up = StackedWeights(moe.num_experts, (h, 2 * m), moe.expert_bias)
        self.expert_down = StackedWeights(moe.num_experts, (m, h), moe.expert_bias)
        if moe.shared_intermediate_size:
            self.shared = Mlp(config, kernels, moe.shared_intermediate_size, "shared_")
        if moe.shared_expert_gate:
            self.shared_expert_gate = Linear((h, 1), False, kernels, fp8=False)
        self.ranks: Any = None  # harness/ranks/experts.ExpertRanks, where several have the experts

    def forward(self, x: Tensor) -> Tensor:
        """x (b, s, h) to (b, s, h)."""
        tokens = x.reshape(-1, x.shape[-1])
        if self.moe.shared_expert_gate:
            return self._gated_shared(tokens).reshape(x.shape)
        _logits, weights, chosen = self.router.route(tokens)
        if self.moe.fp32_router:  # DeepSeek's router makes a view of its own
            tokens = x.reshape(-1, x.shape[-1])
        out = self._experts(tokens, chosen, weights).reshape(x.shape)
        if not self.moe.shared_intermediate_size:
            return out
        return self._joined(out, self.shared(x))

    def _gated_shared(self, tokens: Tensor) -> Tensor:
        """Qwen2-MoE: the shared expert runs first and is weighted by a sigmoid gate of its own."""
        shared = self.shared(tokens)
        _logits, weights, chosen = self.router.route(tokens)
        out = self._experts(tokens, chosen, weights)
        with op("shared_expert_gate"):
            shared = torch.sigmoid(self.shared_expert_gate(tokens)) * shared
        return self._joined(out, shared)

    def _joined(self, routed: Tensor, shared: Tensor) -> Tensor:
        with op("combine"):
            return routed + shared

    def _experts(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The routed experts' weighted sum for each token: tokens (T, h), chosen and weights (T, t)."""
        with op("dispatch"):
            tokens = tokens.to(DTYPES[self.kernels.compute_dtype])
            weights = weights.to(tokens.dtype)
            ids, perm = torch.sort(chosen.reshape(-1))
            token_of = perm // chosen.shape[1]
            selected = tokens[token_of]
            row_weights = weights.reshape(-1)[perm]
            experts = self.moe.num_experts
            _as_int, counts = rows_of_each(ids, experts)
            if self.ranks is not None:
                selected, counts, sent = self.ranks.dispatch(selected, counts)
            offsets = torch.cumsum(counts, 0, dtype=torch.int32)
        bias = self._bias_rows("expert_gate_up", ids)
        out = self._product("expert_gate_up", selected, offsets, bias)
        with op("expert_activation"):
            out = self._gated(out)
        bias = self._bias_rows("expert_down", ids)
        out = self._product("expert_down", out, offsets, bias)
        if self.ranks is not None:
            out = self.ranks.combine(out, sent)
        with op("combine"):
            weighted = out * row_weights.unsqueeze(-1)
            return torch.zeros_like(tokens).index_add_(0, token_of, weighted)

    def _bias_rows(self, name: str, ids: Tensor) -> Tensor | None:
        """Each row's bias (R, out), where experts have biases."""
        bias = self._stacked(name).bias
        if bias is None:
            return None
        with op(name):
            return bias[ids]

    def _product(self, name: str, rows: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
        """Each row times its expert's weight, plus its bias."""
        with op(name):
            weight: Tensor = self._stacked(name).weight
            if self.kernels.autocast:
                weight = cast_parameter(weight, DTYPES[self.kernels.compute_dtype])
            out = grouped_product(rows.to(weight.dtype), weight, offsets)
            if bias is not None:
                out += bias
            return out

    def _stacked(self, name: str) -> StackedWeights:
        return self.expert_down if name == "expert_down" else self.expert_gate_up

    def _gated(self, gate_up: Tensor) -> Tensor:
        """act(gate) * up; gpt-oss clamps both and computes (up + 1) gate sigmoid(1.702 gate)."""
        if self.moe.scoring != "softmax-of-chosen":
            gate, up = gate_up.chunk(2, dim=-1)
            return activate(gate, self.config.hidden_act) * up
        gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        gate = gate.clamp(max=_LIMIT)
        up = up.clamp(min=-_LIMIT, max=_LIMIT)
        glu = gate * torch.sigmoid(gate * 1.702)
        return (up + 1) * glu

"""Routers: which experts a token goes to, and with what weight.

Symbols: T = b s tokens, E experts in G groups, t chosen a token. Each returns its logits (T, E), which
the caller keeps until the MLP returns, weights (T, t) and indices (T, t). DeepSeek-V3's correction
bias is zero at the start of training and is left out; routed weights are scaled by one.
Source: DeepSeek-V3 (arXiv:2412.19437), sec. 2.1.2; the families' code in transformers 5.23.
Checked by: oracle/test_sparse_blocks.py, harness/test_decoder_hf.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcalc.engine.kernels import Kernels
from memcalc.harness.model.casting import Linear, linear
from memcalc.harness.watch.scopes import op
from memcalc.inputs.model import ModelConfig, MoeConfig

Routing = tuple[Tensor, Tensor, Tensor]


class Router(Linear):
    """Logits, weights and indices of the chosen experts, by the model's scoring."""

    def __init__(self, config: ModelConfig, moe: MoeConfig, kernels: Kernels) -> None:
        super().__init__((config.hidden_size, moe.num_experts), moe.router_bias, kernels, fp8=False)
        self.moe = moe

    def route(self, tokens: Tensor) -> Routing:
        """tokens (T, h)."""
        with op("router"):
            if self.moe.scoring == "sigmoid":
                return self._by_sigmoid(self._logits(tokens))
            if self.moe.scoring == "softmax-of-chosen":
                logits = self._logits(tokens)
                values, chosen = torch.topk(logits, self.moe.num_experts_per_tok)
                return logits, torch.softmax(values, -1), chosen
            if self.moe.fp32_router:
                return self._by_groups(self._logits(tokens))
            return self._by_softmax(self._logits(tokens))

    def _logits(self, tokens: Tensor) -> Tensor:
        if not self.moe.fp32_router or self.kernels.autocast:
            return linear(tokens, self.weight, self.bias, self.kernels)
        return F.linear(tokens.float(), self.weight.float())

    def _by_softmax(self, logits: Tensor) -> Routing:
        """Mixtral and Qwen: softmax over all experts in fp32, then the t largest."""
        probs = torch.softmax(logits.float(), -1)
        values, chosen = torch.topk(probs, self.moe.num_experts_per_tok)
        if self.moe.normalize_top_k:
            values /= values.sum(-1, keepdim=True)
        values = values.to(logits.dtype)
        return logits, values, chosen

    def _by_groups(self, logits: Tensor) -> Routing:
        """DeepSeek-V2: softmax, then the t largest among the groups with the largest maxima."""
        scores = torch.softmax(logits.float(), -1)
        if self.moe.expert_groups:
            best = self._grouped(scores).max(-1)[0]
            group_mask, _groups = self._best_groups(best)
            score_mask = self._expert_mask(group_mask)
            scores = scores.masked_fill(~score_mask.bool(), 0.0)
        values, chosen = torch.topk(scores, self.moe.num_experts_per_tok)
        values = values * 1.0
        return logits, values, chosen

    def _by_sigmoid(self, logits: Tensor) -> Routing:
        """DeepSeek-V3: sigmoid scores; the choice is made inside the best groups."""
        scores = logits.sigmoid()
        for_choice = scores + 0.0
        best = torch.topk(self._grouped(for_choice), 2)[0].sum(-1)
        group_mask, _groups = self._best_groups(best)
        score_mask = self._expert_mask(group_mask)
        for_choice = for_choice.masked_fill(~score_mask.bool(), 0.0)
        chosen = torch.topk(for_choice, self.moe.num_experts_per_tok)[1]
        values = scores.gather(-1, chosen)
        if self.moe.normalize_top_k:
            total = values.sum(-1, keepdim=True) + 1e-20
            values /= total
        values = values * 1.0
        return logits, values, chosen

    def _grouped(self, scores: Tensor) -> Tensor:
        """(T, E) as (T, G, E / G)."""
        return scores.reshape(scores.shape[0], max(1, self.moe.expert_groups), -1)

    def _best_groups(self, best: Tensor) -> tuple[Tensor, Tensor]:
        """A mask (T, G), 1 for the groups chosen, and their indices; both live on in the caller."""
        groups = torch.topk(best, self.moe.groups_per_token)[1]
        mask = torch.zeros_like(best)
        mask.scatter_(1, groups, 1)
        return mask, groups

    def _expert_mask(self, group_mask: Tensor) -> Tensor:
        """The group mask spread over the experts: (T, E)."""
        rows, groups = group_mask.shape
        wide = group_mask.unsqueeze(-1).expand(rows, groups, self.moe.num_experts // groups)
        return wide.reshape(rows, self.moe.num_experts)


class StackedWeights(nn.Module):
    """One weight (E, out, in) for all experts, and a bias (E, out) where they have one."""

    def __init__(self, experts: int, features: tuple[int, int], bias: bool) -> None:
        super().__init__()
        n_in, n_out = features
        self.weight = nn.Parameter(torch.empty(experts, n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(experts, n_out)) if bias else None

"""One decoder block: norms, attention, MLP and residual adds, by the model's placement.

Shapes: x (b, s, h). pre: x + f(norm(x)); post: x + norm(f(x)); sandwich: x + norm(f(norm(x)));
post-residual: norm(x + f(x)); parallel: x + attention(norm(x)) + mlp(norm'(x)).
Checked by: oracle/test_plain_variants.py, oracle/test_step_peak.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.harness.model.attention import Attention
from memcalc.harness.model.attention_core import dropout
from memcalc.harness.model.casting import cast_scope
from memcalc.harness.model.mla import LatentAttention
from memcalc.harness.model.mlp import Mlp
from memcalc.harness.model.moe import Moe
from memcalc.harness.model.norms import Norm
from memcalc.harness.watch.scopes import layer, op
from memcalc.inputs.model import ModelConfig


class Block(nn.Module):
    """Block `index` of a decoder; kind says whether its MLP is a mixture of experts."""

    def __init__(self, config: ModelConfig, kernels: Kernels, kind: BlockKind, index: int) -> None:
        super().__init__()
        self.config, self.kernels, self.index = config, kernels, index
        self.p = config.residual_dropout if kernels.use_dropout else 0.0
        placement = "pre" if config.parallel_block else config.norm_placement
        self.before = placement in ("pre", "sandwich")
        self.after = placement in ("post", "sandwich")
        self.after_sum = placement == "post-residual"
        attention = LatentAttention if config.mla else Attention
        if self.before:
            self.attn_norm = self._norm("attn_norm")
        self.attn = attention(config, kernels, index)
        if self.after:
            self.post_attn_norm = self._norm("post_attn_norm")
        if self.after_sum:
            self.attn_norm = self._norm("attn_norm")
        if self.before and not (config.parallel_block and config.parallel_norms == 1):
            self.mlp_norm = self._norm("mlp_norm")
        self.mlp = Moe(config, kernels) if kind.sparse else Mlp(config, kernels)
        if self.after:
            self.post_mlp_norm = self._norm("post_mlp_norm")
        if self.after_sum:
            self.mlp_norm = self._norm("mlp_norm")

    def _norm(self, name: str) -> Norm:
        return Norm(self.config.hidden_size, name, self.config, self.kernels)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """context: what attention reads beside x, that is tables and mask."""
        with layer(self.index), cast_scope(self.kernels.autocast):
            if self.config.parallel_block:
                return self._parallel(x, *context)
            x = self._add(x, self._drop(self._attend(x, *context), "attn_dropout"), "attn_residual")
            if self.after_sum:
                x = self.attn_norm(x)
            x = self._add(x, self._drop(self._feed(x), "mlp_dropout"), "mlp_residual")
            return self.mlp_norm(x) if self.after_sum else x

    def _parallel(self, x: Tensor, *context: Tensor) -> Tensor:
        normed = self.attn_norm(x)
        attended = self._drop(self.attn(normed, *context), "attn_dropout")
        if self.config.parallel_norms == 2:
            normed = self.mlp_norm(x)
        fed = self._drop(self.mlp(normed), "mlp_dropout")
        return self._add(self._add(x, attended, "attn_residual"), fed, "mlp_residual")

    def _attend(self, x: Tensor, *context: Tensor) -> Tensor:
        normed = self.attn_norm(x) if self.before else x
        out = self.attn(normed, *context)
        return self.post_attn_norm(out) if self.after else out  # type: ignore[no-any-return]

    def _feed(self, x: Tensor) -> Tensor:
        normed = self.mlp_norm(x) if self.before else x
        out = self.mlp(normed)
        return self.post_mlp_norm(out) if self.after else out  # type: ignore[no-any-return]

    def _drop(self, x: Tensor, name: str) -> Tensor:
        if not self.p:
            return x
        with op(name):
            return dropout(x, self.p, self.kernels.device)

    def _add(self, x: Tensor, branch: Tensor, name: str) -> Tensor:
        with op(name):
            return x + branch

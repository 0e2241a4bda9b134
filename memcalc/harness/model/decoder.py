"""The decoder in plain PyTorch, built from the engine's plan: what the ledger claims to describe.

Modules carry the names of the ledger's operators; every step runs inside an `op` context of that
name. A plan's kernels choose norm, attention, loss, casts and recomputation; its `device` says whose
kernels are meant, so that a GPU's step can be followed on tensors without data.
Letters: b sequences, s positions, V vocabulary, h hidden, w width of the embedding.
Checked by: oracle/test_torch_saved.py, oracle/test_step_peak.py, harness/test_decoder_hf.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.engine.plan import Plan
from memcalc.harness.local import check_code
from memcalc.harness.model.attention_core import dropout
from memcalc.harness.model.block import Block
from memcalc.harness.model.cache import Cache
from memcalc.harness.model.casting import DTYPES, Linear, cast_scope
from memcalc.harness.model.loss import chunked_loss, cross_entropy, fused_loss, logits_of
from memcalc.harness.model.norms import Norm
from memcalc.harness.model.packed import Packed
from memcalc.harness.model.positions import causal_mask, distance_table, rope_tables
from memcalc.harness.model.recompute import run_block
from memcalc.harness.model.tuning import tune
from memcalc.harness.watch.scopes import enter_loss, op
from memcalc.inputs.model import ModelConfig

Context = tuple[Tensor, ...]


class Decoder(nn.Module):
    """Token ids and labels in, mean loss out. rope_theta changes values only, never a byte."""

    def __init__(self, config: ModelConfig, kernels: Kernels, kinds: tuple[BlockKind, ...]) -> None:
        super().__init__()
        self.config, self.kernels, self.kinds = config, kernels, kinds
        self.rope_theta = 10000.0
        self.positions: Tensor | None = None  # int64 (s); None: 0 to s - 1, or after the cache
        self.cache: Cache | None = None
        h, w = config.hidden_size, config.word_embed_proj_dim or config.hidden_size
        self.embedding = Embedding(config.vocab_size, w)
        self.project_in = Linear((w, h), False, kernels, fp8=False) if w != h else None
        if config.position_embedding == "learned":
            self.position_embedding = Embedding(config.num_position_rows, h)
        if config.embedding_norm:
            self.embedding_norm = Norm(h, "embedding_norm", config, kernels)
        self.layers = nn.ModuleList(
            Block(config, kernels, kind, index) for index, kind in enumerate(kinds)
        )
        self.final_norm = Norm(h, "final_norm", config, kernels) if config.final_norm else None
        self.project_out = Linear((h, w), False, kernels, fp8=False) if w != h else None
        self.lm_head = Head(config, w)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """ids and labels int64 (b, s); the label at a position is the token to be predicted there."""
        with cast_scope(self.kernels.autocast):
            x, _tables = self.hidden_states(ids)  # both live until the loss is there
            return self._loss(x, labels.view(-1))

    def hidden_states(self, ids: Tensor) -> tuple[Tensor, dict[str, Context]]:
        """What the last block returns (b, s, h), and what all blocks read."""
        x = self._embed(ids)
        contexts = self._contexts(ids)
        for kind, block in zip(self.kinds, self.layers, strict=True):
            x = run_block(block, kind.recompute, x, *contexts[kind.attention])
        return x, contexts

    def logits(self, ids: Tensor) -> Tensor:
        """Logits (b, s, V)."""
        with cast_scope(self.kernels.autocast):
            return self._logits(self._final(self.hidden_states(ids)[0]))

    def take(self, cache: Cache | None) -> None:
        """Read and fill this cache from the next pass on; None: none."""
        self.cache = cache
        for number, block in enumerate(self.layers):
            assert isinstance(block, Block)
            block.attn.cache = None if cache is None else cache.layers[number]

    def next_tokens(self, ids: Tensor) -> Tensor:
        """The likeliest token (b) after ids (b, s), which the cache takes in. Without gradients."""
        with torch.no_grad():
            with cast_scope(self.kernels.autocast):
                logits = self._last_logits(ids)
            if self.cache is not None:
                self.cache.seen += ids.shape[1]
            with op("sample"):
                return logits[:, -1].float().argmax(-1)

    def _last_logits(self, ids: Tensor) -> Tensor:
        x, _tables = self.hidden_states(ids)  # both live until the logits are there
        return self._logits(self._final(x)[:, -1:])

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight (V, w) and bias (V) of the output projection."""
        own = self.lm_head.weight
        return self.embedding.weight if own is None else own, self.lm_head.bias

    def _logits(self, hidden: Tensor) -> Tensor:
        return logits_of(hidden, self.head, self.config.final_logit_softcapping, self.kernels)

    def _loss(self, x: Tensor, labels: Tensor) -> Tensor:
        kind, cap = self.kernels.loss, self.config.final_logit_softcapping
        if kind == "chunked":
            return chunked_loss(self._final(x), labels, self.head, cap, self.kernels)
        if kind == "fused":
            return fused_loss(self._final(x), labels, self.head[0], self.kernels)
        logits = self._logits(self._final(x))
        enter_loss()
        return cross_entropy(
            logits.view(-1, self.config.vocab_size), labels, kind == "fp32", self.kernels.autocast
        )

    def _embed(self, ids: Tensor) -> Tensor:
        config = self.config
        with op("embedding"):
            x: Tensor = self.embedding(ids)
            if config.embedding_scale:
                x = x * config.hidden_size**0.5
            if self.kernels.adapter is not None and self.kernels.adapter.input_gradients:
                x.requires_grad_(True)  # for checkpoints, as enable_input_require_grads does it
        if self.project_in is not None:
            with op("project_in"):
                x = self.project_in(x)
        if config.position_embedding == "learned":
            with op("position_embedding"):
                x = x + self.position_embedding(self._positions(ids))
        if config.embedding_norm:
            x = self.embedding_norm(x)
        if config.embedding_dropout and self.kernels.use_dropout:
            with op("embedding_dropout"):
                x = dropout(x, config.embedding_dropout, self.kernels.device)
        return x

    def _positions(self, ids: Tensor) -> Tensor:
        if self.positions is not None:
            return self.positions.clone()
        return torch.arange(self._seen, self._seen + ids.shape[1], device=ids.device)

    @property
    def _seen(self) -> int:
        return 0 if self.cache is None else self.cache.seen

    def _contexts(self, ids: Tensor) -> dict[str, Context]:
        """What blocks of each kind read: the same tables, a mask of their own."""
        config, s, device = self.config, ids.shape[1], ids.device
        dtype = DTYPES[self.kernels.compute_dtype]
        tables: Context = ()
        if config.position_embedding == "rope":
            width = config.head_dim if config.rotary_dim is None else config.rotary_dim
            width = config.mla.qk_rope_head_dim if config.mla else width
            first = self._seen if self.positions is None else self.positions
            tables = rope_tables(s, width, self.rope_theta, dtype, device, first)
        elif config.position_embedding == "relative":
            tables = (distance_table(s, config.hidden_size, dtype, device),)
        kinds = sorted({kind.attention for kind in self.kinds})
        if self.kernels.attention != "eager" and config.position_embedding != "alibi":
            return dict.fromkeys(kinds, tables)
        read = {} if self.cache is None else self.cache.reads(self.kinds, s)
        return {
            kind: (
                *tables,
                causal_mask(config, kind == "sliding", s, dtype, device, read.get(kind)),
            )
            for kind in kinds
        }

    def _final(self, x: Tensor) -> Tensor:
        x = x if self.final_norm is None else self.final_norm(x)
        if self.project_out is None:
            return x
        with op("project_out"):
            return self.project_out(x)  # type: ignore[no-any-return]


class Embedding(nn.Embedding):
    """A table of rows (rows, width), not drawn yet."""

    def reset_parameters(self) -> None:
        """Nothing: a decoder draws its weights as a whole."""


class Head(nn.Module):
    """The output projection's own parameters: no weight where it is the embedding's."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        tied, bias = config.tie_word_embeddings, config.lm_head_bias
        shape = (config.vocab_size, width)
        self.weight = None if tied else nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if bias else None


def build(plan: Plan, device: torch.device | str, seed: int | None = 0) -> Decoder:
    """The plan's decoder on a device, weights drawn from N(0, 0.02); seed None leaves them unset.

    Raises ConfigError for a plan of a stack whose code is not this decoder's.
    """
    check_code(plan)
    model = assemble(plan.config, plan.kernels, plan.kinds, device)
    if (adapter := plan.kernels.adapter) is not None:
        with parameters_made(adapter.dtype, device):
            tune(model, plan, plan.kinds)
    if seed is not None:
        initialize(model, seed)
    return model


def assemble(
    config: ModelConfig, kernels: Kernels, kinds: tuple[BlockKind, ...], device: torch.device | str
) -> Decoder:
    """A decoder whose weights are allocated and not drawn, in the kernels' parameter dtype."""
    with parameters_made(kernels.param_dtype, device):
        return Decoder(config, kernels, kinds)


@contextmanager
def parameters_made(dtype: str, device: torch.device | str) -> Iterator[None]:
    """Context: new parameters are of this dtype ("fp32", "bf16", "fp16") and on this device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def initialize(model: nn.Module, seed: int) -> None:
    """Matrices from N(0, 0.02), norms one, biases zero (Radford et al. 2019, sec. 2.3)."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        draw(name, parameter, model)
    for module in model.modules():
        if isinstance(module, Packed):
            module.draw()


@torch.no_grad()
def draw(name: str, values: Tensor, model: nn.Module) -> None:
    """First values of one whole parameter of a model, from torch's generator."""
    if "lora_B" in name:  # an adapter adds nothing at first
        values.zero_()
    elif values.ndim > 1:
        values.normal_(0.0, 0.02)
    elif name.endswith("norm.weight"):
        unit = any(isinstance(m, Norm) and m.kind == "unit_offset" for m in model.modules())
        values.fill_(0.0 if unit else 1.0)
    else:
        values.zero_()


def ledger_name(parameter: str) -> str:
    """The ledger's name of a parameter: `layers.0.attn.q_proj.weight` is its `layers.0.q_proj.weight`."""
    inner = {"attn", "mlp", "relative", "shared", "adapter"}
    return ".".join(part for part in parameter.split(".") if part not in inner)

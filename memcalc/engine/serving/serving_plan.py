"""ServingPlan: a serving setup turned into kernels, a layout, and the forward passes that it makes.

An engine's layers run: those of the family's own code for transformers, vLLM's, the plain decoder's for
llama.cpp, whose activations are fp32. What an engine or a layout has not here is refused in one line.
Checked by: unit/test_serving_setup.py, unit/test_serving_memory.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from memcalc.engine.aten.quantised import Quantised, writes_out
from memcalc.engine.blocks.sampling import GREEDY, PROBABILITIES, SORTED
from memcalc.engine.blocks.vllm_layer import check_vllm
from memcalc.engine.kernels import Adapter, Kernels, Traits
from memcalc.engine.make_plan import plan_of
from memcalc.engine.quantised import Weights, check_family, weights_of
from memcalc.engine.quantised_mixtures import Facts
from memcalc.engine.serving.forward import Forward, Part, Positions, forward_of
from memcalc.engine.serving.serving_layout import Place, layout_of, places_of
from memcalc.engine.states import all_leaves
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.serving import (
    NGRAM,
    ResolvedServing,
    ServingSetup,
    resolve_serving,
)
from memcalc.inputs.training import TrainingSetup, truncate
from memcalc.inputs.weights import WeightFormat, load_weights


class ServingPlan(NamedTuple):
    """A served model, or what one device of it runs.

    kernels: of the activations as they lie in memory; timed: as they are priced. With linears packed by
    bitsandbytes the passes are its own code's (engine/aten/quantised.py). places: every device, in the
    order its layers run; part: of the one at hand. draft: the model that proposes tokens, shared: whether
    its weights are this model's own.
    """

    resolved: ResolvedServing
    kernels: Kernels
    timed: Kernels
    format: WeightFormat
    layout: ParallelPlan = ParallelPlan()
    notes: tuple[str, ...] = ()
    quantised: Quantised | None = None  # how bitsandbytes packs the linears of the blocks
    places: tuple[Place, ...] = (Place("gpu", Part()),)
    part: Part = Part()
    draft: ServingPlan | None = None
    shared: bool = False

    @property
    def config(self) -> ModelConfig:
        return self.resolved.config

    @property
    def sequences(self) -> int:
        """Sequences of a rank: those of its replica."""
        return -(-self.resolved.batch // self.layout.copies)

    @property
    def gpu_places(self) -> tuple[Place, ...]:
        """The devices that are not the host."""
        return tuple(place for place in self.places if not place.host)

    @property
    def host_places(self) -> tuple[Place, ...]:
        return tuple(place for place in self.places if place.host)

    @property
    def grows(self) -> bool:
        """Whether the cache's tensors grow with the sequence."""
        return self.resolved.cache in ("grow", "tuple", "fp8")

    def on(self, place: Place) -> ServingPlan:
        """What one device runs."""
        return self._replace(part=place.part)

    def sized(self, batch: int, context: int) -> ServingPlan:
        """The same plan at other sizes."""
        draft = self.draft.sized(batch, context) if self.draft else None
        return self._replace(resolved=self.resolved.sized(batch, context), draft=draft)

    def forward(self, at: Positions, timed: bool = False, samples: str = GREEDY) -> Forward:
        """One forward pass of this plan."""
        kernels = self.timed if timed else self._packed(at)
        if samples == GREEDY and self.resolved.engine.name == "vllm":
            samples = PROBABILITIES
        return forward_of(self.config, kernels, at, self.resolved.cache, self.part, samples)

    def _packed(self, at: Positions) -> Kernels:
        """The kernels of a pass of so many rows: bitsandbytes writes matrices out for many."""
        if self.quantised is None:
            return self.kernels
        quantised = self.quantised._replace(writes_out=writes_out(at.batch * at.new))
        return self.kernels._replace(adapter=Adapter("none", quantised=quantised))

    def profile(self, batch: int, new: int, past: int = 0) -> Forward:
        """The largest pass that an engine prepares for, with its costliest way of sampling."""
        own = SORTED if self.resolved.engine.name == "vllm" else GREEDY
        return self.forward(self._at(batch, new, past, None), samples=own)

    def decode(
        self, past: int, timed: bool = False, held: int | None = None, batch: int | None = None
    ) -> Forward:
        """A decode step over so many positions. held: of the tensors of a window's past."""
        return self.forward(self._at(batch or self.sequences, 1, past, held), timed)

    def verify(self, past: int, timed: bool = False) -> Forward:
        """The pass that checks drafted tokens: one more position than those, and logits of all."""
        every = self._replace(part=self.part._replace(every=True))
        return every.forward(self._at(self.sequences, self.resolved.drafted + 1, past, None), timed)

    def prefill(self, batch: int, new: int, past: int = 0, timed: bool = False) -> Forward:
        """A pass over `new` positions of the prompts of so many sequences."""
        return self.forward(self._at(batch, new, past, None), timed)

    def _at(self, batch: int, new: int, past: int, held: int | None) -> Positions:
        if self.grows or self.resolved.cache == "grouped":
            return Positions(batch, new, past, window_held=held)
        whole = self.resolved.cache == "static"
        return Positions(batch, new, past, self.resolved.context if whole else past + new)

    def weights(self) -> Weights:
        """The weights of a rank in their format."""
        one = self.forward(Positions(1, 2))
        config = self.config
        groups = config.num_attention_heads // config.num_key_value_heads
        first = self.part.layers[0] if self.part.layers else 0
        facts = Facts(
            config.model_type, config.num_hidden_layers, groups,
            config.moe.num_experts if config.moe else 0, first - 1, tied=config.tie_word_embeddings,
        )  # fmt: skip
        leaves = all_leaves(one.structure, one.runs)
        return weights_of(leaves, one.values, self.format, facts, self.resolved.compute_dtype)


def serving_plan(resolved: ResolvedServing, parallel: ParallelPlan | None = None) -> ServingPlan:
    """The plan of a resolved setup. Raises ConfigError for what cannot be, or is not in this version.

    gpu_layers auto: all layers, until `verdict.fitted` knows the device.
    """
    config = resolved.config
    if config.is_encoder or config.position_embedding in ("relative", "bucketed"):
        raise NotInThisVersionError(
            f"infer: {config.name}: encoders and relative positions are not in this version; "
            "valid: decoders"
        )
    layout = layout_of(config, resolved, parallel)
    fmt = load_weights(resolved.setup.weights)
    check_family(fmt, config.model_type)
    kernels, timed, notes = _kernels(resolved)
    if fmt.kernel == "int8":
        notes.append("LLM.int8's products save memory and do not make decoding faster")
    packed = _quantised(resolved, fmt)
    if packed is None and fmt.kernel in ("dequantise", "int8"):
        notes.append(f"what {fmt.name}'s products write out while they run is not counted")
    stated = resolved.setup.gpu_layers
    places = places_of(config, resolved, layout, None if isinstance(stated, str) else stated)
    plan = ServingPlan(
        resolved, kernels, timed, fmt, layout, (*resolved.notes, *notes), packed, places,
        places[-1].part if len(places) == 1 else Part(layout, imbalance=resolved.setup.imbalance),
    )  # fmt: skip
    return with_draft(plan, parallel)


def with_draft(plan: ServingPlan, parallel: ParallelPlan | None) -> ServingPlan:
    """The plan with its draft's, where a model proposes tokens. Raises ConfigError."""
    setup = plan.resolved.setup
    if setup.draft is None:
        return plan
    if plan.layout.pp > 1 or plan.layout.copies > 1:
        raise NotInThisVersionError(
            "draft: speculative decoding with pp or dp is not in this version; valid: --tp"
        )
    if setup.draft == NGRAM:
        return plan
    named, of_its_own = drafted_config(setup, plan.config)
    alone = replace(setup, draft=None, draft_tokens=None, acceptance=None, num_layers=None)
    draft = serving_plan(resolve_serving(alone, named), parallel)
    return plan._replace(draft=draft, shared=not of_its_own)


#: How much longer one vocabulary may be: transformers translates between tokenizers; llama.cpp's limit
#: is SPEC_VOCAB_MAX_SIZE_DIFFERENCE (common/speculative.cpp); vLLM asks for the same.
_VOCABULARY_APART = {"transformers": 1 << 31, "llama.cpp": 128, "vllm": 0}


def drafted_config(setup: ServingSetup, config: ModelConfig) -> tuple[ModelConfig, bool]:
    """The draft's config, and whether it has weights of its own. Raises ConfigError."""
    name = setup.draft or ""
    word, colon, layers = name.partition(":")
    if word == "self" and colon:
        if not layers.isdecimal() or not 1 <= int(layers) < config.num_hidden_layers:
            raise ConfigError(
                f"draft: got {name!r}; rule: self:N, the model's first N layers; valid: self:1 to "
                f"self:{config.num_hidden_layers - 1}"
            )
        return truncate(config, int(layers))[0], False
    found = load_model(name)
    apart = abs(found.vocab_size - config.vocab_size)
    if apart > _VOCABULARY_APART[setup.engine]:
        raise ConfigError(
            f"draft: got {name} with {found.vocab_size} tokens; rule: the vocabulary of {config.name}, "
            f"{config.vocab_size}; valid: a smaller model of its family, ngram, self:N"
        )
    return found, True


#: Families whose code multiplies by weights itself, which bitsandbytes' modules do not see.
_OWN_LINEARS = ("falcon", "bloom", "gpt2", "openai-gpt")


def _quantised(resolved: ResolvedServing, fmt: WeightFormat) -> Quantised | None:
    """How linears are packed, where their products are described: dense models of transformers."""
    config = resolved.config
    described = resolved.engine.name == "transformers" and config.moe is None
    if not described or config.model_type in _OWN_LINEARS:
        return None
    if fmt.kernel == "int8":
        return Quantised(8)
    if fmt.kernel != "dequantise":
        return None
    parts = fmt.packing(dict(fmt.roles)["linear"]).parts
    nested = any(part.name == "nested_absmax" for part in parts)
    return Quantised(4, nested, True, resolved.compute_dtype)


def _kernels(resolved: ResolvedServing) -> tuple[Kernels, Kernels, list[str]]:
    config, stack = resolved.config, resolved.engine.stack
    dtype = resolved.compute_dtype
    if stack == "vllm":
        check_vllm(config)
        own = Kernels(
            param_dtype=dtype, compute_dtype=dtype, norm="fused", attention="flash",
            traits=Traits(code="vllm", fused_gate_up=True),
        )  # fmt: skip
        return own, own, []
    setup = TrainingSetup(
        precision="bf16", stack=stack, seq_len=2, optimizer="none",
        attention=resolved.setup.attention,
    )  # fmt: skip
    plan = plan_of(config, setup)
    timed = plan.kernels._replace(param_dtype=dtype, compute_dtype=dtype)
    if resolved.setup.repeat_kv:
        timed = timed._replace(traits=timed.traits._replace(repeats_kv=True))
    notes = [note for note in plan.notes if note.startswith("attention")]
    if resolved.engine.name != "llama.cpp":
        return timed, timed, notes
    return timed._replace(param_dtype="fp32", compute_dtype="fp32"), timed, notes

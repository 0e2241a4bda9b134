"""ServingPlan: a serving setup turned into kernels, a layout, and the forward passes that it makes.

An engine's layers run: those of the family's own code for transformers, vLLM's, the plain decoder's for
llama.cpp, whose activations are fp32. What an engine or a layout has not here is refused in one line.
Checked by: unit/test_serving_setup.py, unit/test_serving_memory.py.
"""

from __future__ import annotations

from typing import NamedTuple

from memcalc.engine.aten.quantised import Quantised, writes_out
from memcalc.engine.blocks.sampling import GREEDY, PROBABILITIES, SORTED
from memcalc.engine.blocks.vllm_layer import check_vllm
from memcalc.engine.kernels import Adapter, Kernels, Traits
from memcalc.engine.plan import plan_of
from memcalc.engine.quantised import Weights, check_family, weights_of
from memcalc.engine.quantised_mixtures import Facts
from memcalc.engine.serving.forward import Forward, Positions, forward_of
from memcalc.engine.states import all_leaves
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan, with_degrees
from memcalc.inputs.serving import ResolvedServing
from memcalc.inputs.training import TrainingSetup
from memcalc.inputs.weights import WeightFormat, load_weights


class ServingPlan(NamedTuple):
    """A served model. kernels: of the activations as they lie in memory; timed: as they are priced.

    With linears packed by bitsandbytes the passes are its own code's (engine/aten/quantised.py).
    """

    resolved: ResolvedServing
    kernels: Kernels
    timed: Kernels
    format: WeightFormat
    layout: ParallelPlan = ParallelPlan()
    notes: tuple[str, ...] = ()
    quantised: Quantised | None = None  # how bitsandbytes packs the linears of the blocks

    @property
    def config(self) -> ModelConfig:
        return self.resolved.config

    def sized(self, batch: int, context: int) -> ServingPlan:
        """The same plan at other sizes."""
        return self._replace(resolved=self.resolved.sized(batch, context))

    def forward(self, at: Positions, timed: bool = False, samples: str = GREEDY) -> Forward:
        """One forward pass of this plan."""
        kernels = self.timed if timed else self._packed(at)
        if samples == GREEDY and self.resolved.engine.name == "vllm":
            samples = PROBABILITIES
        return forward_of(self.config, kernels, at, self.resolved.cache, self.layout, samples)

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

    def decode(self, past: int, timed: bool = False, held: int | None = None) -> Forward:
        """A decode step over so many positions. held: of the tensors of a window's past."""
        return self.forward(self._at(self.resolved.batch, 1, past, held), timed)

    def prefill(self, batch: int, new: int, past: int = 0, timed: bool = False) -> Forward:
        """A pass over `new` positions of the prompts of so many sequences."""
        return self.forward(self._at(batch, new, past, None), timed)

    def _at(self, batch: int, new: int, past: int, held: int | None) -> Positions:
        if self.resolved.cache in ("grow", "tuple"):
            return Positions(batch, new, past, window_held=held)
        whole = self.resolved.cache == "static"
        return Positions(batch, new, past, self.resolved.context if whole else past + new)

    def weights(self) -> Weights:
        """The weights of a rank in their format."""
        one = self.forward(Positions(1, 2))
        config = self.config
        groups = config.num_attention_heads // config.num_key_value_heads
        facts = Facts(
            config.model_type, config.num_hidden_layers, groups,
            config.moe.num_experts if config.moe else 0, tied=config.tie_word_embeddings,
        )  # fmt: skip
        leaves = all_leaves(one.structure, one.runs)
        return weights_of(leaves, one.values, self.format, facts, self.resolved.compute_dtype)


def serving_plan(resolved: ResolvedServing, parallel: ParallelPlan | None = None) -> ServingPlan:
    """The plan of a resolved setup. Raises ConfigError for what cannot be, or is not in this version."""
    config = resolved.config
    if config.is_encoder or config.position_embedding in ("relative", "bucketed"):
        raise NotInThisVersionError(
            f"infer: {config.name}: encoders and relative positions are not in this version; "
            "valid: decoders"
        )
    layout = _layout(config, resolved, parallel or ParallelPlan())
    fmt = load_weights(resolved.setup.weights)
    check_family(fmt, config.model_type)
    kernels, timed, notes = _kernels(resolved)
    if fmt.kernel == "int8":
        notes.append("LLM.int8's products save memory and do not make decoding faster")
    packed = _quantised(resolved, fmt)
    if packed is None and fmt.kernel in ("dequantise", "int8"):
        notes.append(f"what {fmt.name}'s products write out while they run is not counted")
    return ServingPlan(resolved, kernels, timed, fmt, layout, (*resolved.notes, *notes), packed)


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


_REFUSED = ("pp", "cp", "ep", "vpp")


def _layout(config: ModelConfig, resolved: ResolvedServing, parallel: ParallelPlan) -> ParallelPlan:
    """The layout: tp ranks of one replica, nothing else."""
    layout = with_degrees(parallel)
    engine = resolved.engine.name
    for name in _REFUSED:
        if getattr(layout, name, 1) > 1:
            raise NotInThisVersionError(
                f"{name}: got {getattr(layout, name)}: serving with it is not in this version; "
                "valid: --tp"
            )
    if layout.zero or layout.fsdp or layout.offload != "none":
        raise NotInThisVersionError(
            "zero, fsdp, offload: serving with them is not in this version; valid: --tp"
        )
    if layout.copies > 1:
        raise ConfigError(
            f"gpus: got {layout.size} with tp {layout.tp}; rule: one replica, --gpus equal to --tp"
        )
    if layout.tp > 1 and engine == "llama.cpp":
        raise NotInThisVersionError(
            "tp: several GPUs with engine llama.cpp are not in this version; valid: --engine vllm"
        )
    if layout.tp > 1 and (config.mla or config.moe):
        raise NotInThisVersionError(
            f"tp: got {layout.tp} with experts or latent attention: not in this version; valid: 1"
        )
    _check_tp(config, layout.tp)
    return layout


def _check_tp(config: ModelConfig, tp: int) -> None:
    a, k, f = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    valid = [n for n in range(1, a + 1) if a % n == 0 and f % n == 0 and (k % n == 0 or n % k == 0)]
    if tp not in valid:
        raise ConfigError(
            f"tp: got {tp}; rule: divides {a} heads and a width of {f}; valid: "
            f"{', '.join(map(str, valid))}"
        )

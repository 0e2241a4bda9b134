"""Which devices a served model lies on, and what each of them runs.

vllm: tp ranks share each layer, pp stages follow each other, dp replicas have sequences of their own, and
experts are spread over tp x dp ranks with --ep. Of L layers on p stages each has L // p, and the remainder
goes to the stages before the last (vllm/distributed/utils.py, get_pp_indices). llama.cpp: of L layers and
the output, counted as one more, GPU i of n has those from i (L + 1) / n on (src/llama-model.cpp,
load_tensors, equal GPUs); the layers that are not on a GPU, the first, and always the table of tokens are
on the host. transformers: the ranks of its tensor parallelism.
Checked by: unit/test_serving_layouts.py.
"""

from __future__ import annotations

from typing import NamedTuple

from memcalc.engine.serving.forward import Part
from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.parallel import ParallelPlan, with_degrees
from memcalc.inputs.serving import ResolvedServing

#: Degrees that an engine has beside tp, which llama.cpp does not have.
_HAS = {"transformers": ("tp",), "vllm": ("tp", "pp", "dp", "ep"), "llama.cpp": ("pp",)}
_DEGREES = ("tp", "pp", "cp", "ep", "vpp", "dp")
#: Families whose code in transformers states no division.
_UNDIVIDED = ("gpt_oss",)


class Place(NamedTuple):
    """A device, or tp ranks that do the same: what it runs, and whether it is the host."""

    name: str
    part: Part
    host: bool = False


def layout_of(
    config: ModelConfig, resolved: ResolvedServing, parallel: ParallelPlan | None
) -> ParallelPlan:
    """The layout with its degrees filled in. Raises ConfigError for what the engine has not."""
    stated = parallel or ParallelPlan()
    layout, engine = with_degrees(stated), resolved.engine.name
    valid = _HAS[engine]
    for name in _DEGREES:
        degree = layout.copies if name == "dp" else getattr(layout, name)
        if degree > 1 and name not in valid:
            open_dp = name == "dp" and stated.dp is None
            got = (
                f"gpus: got {layout.size}, {degree} replicas"
                if open_dp
                else f"{name}: got {degree}"
            )
            raise NotInThisVersionError(
                f"{got} with engine {engine}: not in this version; valid: "
                + ", ".join(f"--{one}" for one in valid)
            )
    if layout.fsdp or layout.zero or layout.offload != "none" or stated.etp is not None:
        raise NotInThisVersionError(
            "zero, fsdp, offload, etp: serving with them is not in this version; valid: "
            + ", ".join(f"--{one}" for one in valid)
        )
    if resolved.setup.device == "cpu" and layout.size > 1:
        raise ConfigError(f"gpus: got {layout.size} with device cpu; valid: 1")
    _check_tp(config, layout.tp, engine)
    _check_experts(config, layout)
    if layout.pp > config.num_hidden_layers:
        raise ConfigError(
            f"pp: got {layout.pp}; rule: at most the {config.num_hidden_layers} layers of {config.name}"
        )
    return layout


def _check_tp(config: ModelConfig, tp: int, engine: str) -> None:
    a, k, f = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    if tp > 1 and engine == "transformers" and config.model_type in _UNDIVIDED:
        raise NotInThisVersionError(
            f"tp: got {tp} with {config.model_type} on engine transformers, whose code has no plan for "
            "it; valid: 1"
        )
    valid = [
        n for n in range(1, a + 1)
        if a % n == 0 and f % n == 0 and (config.mla or k % n == 0 or n % k == 0)
    ]  # fmt: skip
    if tp not in valid:
        raise ConfigError(
            f"tp: got {tp}; rule: divides {a} heads and a width of {f}; valid: "
            f"{', '.join(map(str, valid))}"
        )


def _check_experts(config: ModelConfig, layout: ParallelPlan) -> None:
    """vLLM spreads experts over all ranks of a stage, or over none."""
    ranks = layout.tp * layout.copies
    if layout.ep == 1:
        return
    if config.moe is None:
        raise ConfigError(f"ep: got {layout.ep} for {config.name} without experts; valid: 1")
    if layout.ep != ranks:
        raise ConfigError(
            f"ep: got {layout.ep}; rule: vLLM spreads experts over all tp x dp ranks; valid: 1, {ranks}"
        )
    if config.moe.num_experts % ranks:
        raise ConfigError(
            f"ep: got {ranks}; rule: divides {config.moe.num_experts} experts; valid: 1"
        )


def places_of(
    config: ModelConfig, resolved: ResolvedServing, layout: ParallelPlan, gpu_layers: int | None
) -> tuple[Place, ...]:
    """Where the layers lie, in the order they run. gpu_layers: of llama.cpp, on GPUs."""
    whole = Part(layout, imbalance=resolved.setup.imbalance)
    engine, layers = resolved.engine.name, config.num_hidden_layers
    if resolved.setup.device == "cpu":
        return (Place("cpu", whole),)
    if engine == "llama.cpp":
        return _llama_cpp(whole, layers, layers + 1 if gpu_layers is None else gpu_layers)
    if layout.pp == 1:
        return (Place("gpu", whole),)
    counts = stage_counts(layers, layout.pp)
    if layout.stage_layers is not None:
        counts = _stated(layout.stage_layers, layers)
    found, first = [], 0
    for number, count in enumerate(counts):
        ends = (number == 0, number == layout.pp - 1)
        part = whole._replace(layers=(first, first + count), ends=ends)
        found.append(Place(f"stage {number}", part))
        first += count
    return tuple(found)


def stage_counts(layers: int, stages: int) -> list[int]:
    """Layers of each stage: an even part, the remainder from the last but one backwards."""
    counts = [layers // stages] * stages
    for number in range(layers % stages):
        counts[-2 - number if layers % stages < stages else number] += 1
    return counts


def _stated(counts: tuple[int, ...], layers: int) -> list[int]:
    if sum(counts) != layers:
        raise ConfigError(
            f"stage_layers: got {sum(counts)} layers in all; rule: the model's {layers}"
        )
    return list(counts)


def _llama_cpp(whole: Part, layers: int, gpu_layers: int) -> tuple[Place, ...]:
    """The first layers on the host, the others on the GPUs in turn; the output with the last."""
    gpus, taken = whole.layout.pp, min(gpu_layers, layers + 1)
    begin = max(0, layers - gpu_layers)
    on_host = whole._replace(layers=(0, begin), ends=(True, taken == 0))
    found = [Place("host", on_host, True)]
    if not taken:
        return tuple(found)
    counts = [0] * gpus
    for layer in range(begin, layers):
        counts[(layer - begin) * gpus // taken] += 1
    first, has_head = begin, gpu_layers > layers
    for number, count in enumerate(counts):
        last = number == gpus - 1
        part = whole._replace(layers=(first, first + count), ends=(False, last and has_head))
        found.append(Place("gpu" if gpus == 1 else f"gpu {number}", part))
        first += count
    if not has_head:
        head = whole._replace(layers=(layers, layers), ends=(False, True))
        found.append(Place("host: output", head, True))
    return tuple(found)

"""Structure: one traced micro-batch of a model with few blocks, which stands for any number of them.

Equal blocks repeat, so each run of them is traced at most three times (first, interior, last), more
where an injector reaches beyond its neighbours, and the second stands for all others. The trace
depends on block kinds, kernels and which dims are 1, never on sizes; it is made once and cached.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import NamedTuple

from memcalc.engine.build import Build, Handed
from memcalc.engine.injectors import Injector
from memcalc.engine.kernel_log import Kernel, flops_kind
from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.engine.late_frees import late_frees, once
from memcalc.engine.ledger import OpRecord
from memcalc.engine.sizes import ONE, ZERO, Size
from memcalc.engine.tensors import Label, Tape, Tensor
from memcalc.engine.trace import micro_batch
from memcalc.errors import MemcalcError
from memcalc.inputs.model import MlaConfig, ModelConfig, MoeConfig

#: Repetitions of a run that are traced; with more, the second stands for all that are not.
TRACED = 3
_MAX_PERIOD = 8


class Run(NamedTuple):
    """A pattern of block kinds repeated `count` times, of which at most `depth` are traced."""

    pattern: tuple[BlockKind, ...]
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    depth: int = TRACED

    @property
    def traced(self) -> int:
        return min(self.count, self.depth)

    @property
    def skipped(self) -> int:
        """Interior repetitions that are not traced."""
        return self.count - self.traced


class Segment(NamedTuple):
    """A stretch of the event list: start of a step, one repetition of a run, or what lies between.

    run is -1 outside the blocks; repetition counts from 0 in the traced order.
    """

    start: int
    end: int
    direction: str  # forward | backward; what is made for a block apart from it: see _TURNS
    run: int
    repetition: int


@dataclass(eq=False)
class Structure:
    """The traced event list with its sizes, labels, segments and final state of each storage."""

    runs: tuple[Run, ...]
    events: tuple[int, ...]
    sizes: tuple[Size, ...]
    unique_sizes: tuple[Size, ...]
    size_index: tuple[int, ...]
    labels_of: tuple[int, ...]
    names: tuple[str, ...]
    labels: tuple[Label, ...]
    segments: tuple[Segment, ...]
    forward_end: int
    kept: frozenset[int]  # storages alive at the end of forward
    gradients: frozenset[int]  # storages that end as a parameter's gradient
    leaves: tuple[Tensor, ...]
    late_frees: tuple[tuple[int, int], ...]  # (event, run): freed outside the run, for every copy
    earlier: frozenset[int]  # storages of an earlier micro-batch, which are only freed here
    records: dict[tuple[int, str], OpRecord]
    kernels: tuple[Kernel, ...]  # in the order they run
    block_flops: dict[int, dict[str, Size]]  # executed FLOPs of each block by kind
    handed: Handed = Handed()  # noqa: RUF009  # immutable
    weights_begin: int = -1  # event at which the second half of backward begins
    hosted: tuple[tuple[int, Size], ...] = ()  # (block, bytes) of what waits on the host
    cache: dict[object, object] = field(default_factory=dict)  # what others derive from it


def find_runs(kinds: tuple[BlockKind, ...], depth: int = TRACED) -> tuple[Run, ...]:
    """Cut a list of block kinds into runs of repeated patterns, longest coverage first."""
    runs: list[Run] = []
    start = 0
    while start < len(kinds):
        best = (1, 1)
        for period in range(1, min(_MAX_PERIOD, len(kinds) - start) + 1):
            pattern = kinds[start : start + period]
            count = 1
            while kinds[start + count * period : start + (count + 1) * period] == pattern:
                count += 1
            covers, leads = count * period, best[0] * best[1]
            if (count > 1 or period == 1) and covers > leads:
                best = (period, count)
        period, count = best
        runs.append(Run(tuple(kinds[start : start + period]), count, depth))
        start += period * count
    return tuple(runs)


_SIZE_FIELDS = frozenset(
    {
        "name", "notes", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
        "num_position_rows", "relative_buckets", "num_encoder_layers", "token_types", "layer_types",
        "dtype", "sliding_window", "rotary_dim",
    }
)  # fmt: skip
_MOE_SIZES = frozenset({"num_experts", "moe_intermediate_size", "sparse_layers"})


def architecture_key(config: ModelConfig) -> tuple[object, ...]:
    """Every field of the config that decides the structure; sizes are left out."""
    key: list[object] = []
    for spec in fields(config):
        value = getattr(config, spec.name)
        if spec.name in _SIZE_FIELDS:
            continue
        if isinstance(value, MoeConfig):
            value = tuple(getattr(value, f.name) for f in fields(value) if f.name not in _MOE_SIZES)
        elif isinstance(value, MlaConfig):
            value = ("mla", value.q_lora_rank is not None)
        elif isinstance(value, float):
            value = bool(value)
        elif spec.name == "word_embed_proj_dim":
            value = value is not None and value != config.hidden_size
        key.append(value)
    return tuple(key)


class StructureKey(NamedTuple):
    """What a structure depends on, hashable."""

    architecture: tuple[object, ...]
    kernels: Kernels
    runs: tuple[tuple[tuple[BlockKind, ...], int], ...]
    dims: tuple[tuple[str, Size], ...]
    has_gradients: bool
    injectors: tuple[Injector, ...] = ()
    ends: tuple[bool, bool] = (True, True)
    reduces: bool = True
    split: bool = False


class Beside(NamedTuple):
    """What a rank has beside its blocks: injectors, and whether the model begins and ends here.

    ends: (embedding, final norm and head); a pipeline's inner stages have neither. depth: repetitions
    of a run to trace, if more than TRACED. reduces: ranks sum their gradients in this micro-batch.
    split: backward in two halves, gradients of weights last; all blocks are traced.
    """

    injectors: tuple[Injector, ...] = ()
    ends: tuple[bool, bool] = (True, True)
    depth: int = 0
    reduces: bool = True
    split: bool = False


#: Marks that begin a stretch; any other begins one forward.
_TURNS = ("backward block", "cache block", "backward cache", "tail block", "backward tail")
_CACHE: dict[StructureKey, Structure] = {}
_CACHE_LIMIT = 256


def structure_of(
    config: ModelConfig,
    kernels: Kernels,
    kinds: tuple[BlockKind, ...],
    dims: dict[str, Size],
    has_gradients: bool,
    beside: Beside = Beside(),  # noqa: B008  # immutable
) -> tuple[Structure, tuple[Run, ...]]:
    """The cached structure for this model and setup, and its runs with their true counts."""
    runs = find_runs(kinds, len(kinds) if beside.split else max(TRACED, beside.depth))
    traced = tuple((r.pattern, r.traced) for r in runs)
    key = StructureKey(
        architecture_key(config), kernels, traced, tuple(dims.items()), has_gradients,
        beside.injectors, beside.ends, beside.reduces, beside.split,
    )  # fmt: skip
    found = _CACHE.get(key)
    if found is None:
        if len(_CACHE) >= _CACHE_LIMIT:
            _CACHE.pop(next(iter(_CACHE)))
        found = _CACHE[key] = trace_structure(config, key)
    return found, runs


def trace_structure(config: ModelConfig, key: StructureKey) -> Structure:
    """Trace the structure of a key; config is any model with the key's architecture."""
    _check_reference_counting()
    runs = tuple(Run(pattern, count, count) for pattern, count in key.runs)
    tape = Tape(device=key.kernels.device, watched=key.kernels.watched)
    build = Build(
        tape, config, key.kernels, dict(key.dims),
        injectors=key.injectors, ends=key.ends, reduces=key.reduces, split=key.split,
    )  # fmt: skip
    layers = [kind for run in runs for _ in range(run.count) for kind in run.pattern]
    micro_batch(build, layers, key.has_gradients)
    return freeze(tape, runs, build.handed)


def _check_reference_counting() -> None:
    """Lifetimes are those of Python's reference counts; an interpreter without them cannot trace."""
    tape = Tape()
    tensor = tape.empty("probe", (ONE,), "uint8")
    del tensor
    if tape.events != [0, ~0]:
        raise MemcalcError("python: this interpreter frees objects late; rule: CPython")


def freeze(tape: Tape, runs: tuple[Run, ...], handed: Handed) -> Structure:
    """The structure of a tape that has been written to its end."""
    end = next(position for position, what, _ in tape.marks if what == "end")
    events = tuple(tape.events[:end])
    forward_end = next(position for position, what, _ in tape.marks if what == "backward")
    halves = (position for position, what, _ in tape.marks if what == "weights")
    begun = events[:forward_end]
    kept = {event for event in begun if event >= 0} - {~event for event in begun if event < 0}
    unique = list(dict.fromkeys(tape.sizes))
    index = {size: i for i, size in enumerate(unique)}
    grads = {leaf.grad.storage.index for leaf in tape.leaves.values() if leaf.grad is not None}
    grads |= {gradient.storage.index for gradient in tape.gradients} | tape.passing
    tape.gradients.clear()
    for leaf in tape.leaves.values():
        leaf.grad = None
    segments = _segments(tape, runs, forward_end, end)
    events, segments = once(events, segments, [run.count for run in runs])
    return Structure(
        runs=runs,
        events=events,
        sizes=tuple(tape.sizes),
        unique_sizes=tuple(unique),
        size_index=tuple(index[size] for size in tape.sizes),
        labels_of=tuple(tape.labels_of),
        names=tuple(tape.names),
        labels=tuple(tape.labels),
        segments=segments,
        forward_end=forward_end,
        kept=frozenset(kept),
        gradients=frozenset(grads - {-1}),
        leaves=tuple(tape.leaves.values()),
        late_frees=late_frees(events, segments),
        earlier=frozenset(tape.earlier),
        records=tape.records,
        kernels=tuple(tape.kernels),
        block_flops=_summed(tape),
        handed=handed,
        weights_begin=next(halves, -1),
        hosted=tuple(tape.hosted),
    )


def _summed(tape: Tape) -> dict[int, dict[str, Size]]:
    """Executed FLOPs by block and kind; the ledger's rows get those that are no recomputation."""
    total: dict[int, dict[str, Size]] = {}
    for kernel in tape.kernels:
        record = tape.records.get((kernel.block, kernel.op))
        if record is not None and kernel.phase != "recompute":
            record.add_traffic(kernel.direction, kernel.ran.moved)
        flops = kernel.ran.flops
        if flops is ZERO:
            continue
        kind, counts = flops_kind(kernel), total.setdefault(kernel.block, {})
        counts[kind] = counts.get(kind, ZERO) + flops
        if record is not None and kind != "recompute":
            record.add_flops(kind, flops)
    return total


def _segments(tape: Tape, runs: tuple[Run, ...], forward_end: int, end: int) -> tuple[Segment, ...]:
    """Cut the event list where a repetition of a run begins, forward and backward."""
    place: dict[int, tuple[int, int]] = {}
    starts = accumulate((run.count * len(run.pattern) for run in runs), initial=0)
    for number, (each, first) in enumerate(zip(runs, starts, strict=False)):
        for block in range(each.count * len(each.pattern)):
            place[first + block] = (number, block // len(each.pattern))
    cuts: list[tuple[int, str, int, int]] = [(0, "forward", -1, -1)]
    for position, what, block in tape.marks:
        if what in ("end", "backward", "weights"):
            if what != "end":
                cuts.append((position, "backward", -1, -1))
            continue
        direction = what.removesuffix(" block") if what in _TURNS else "forward"
        run, repetition = place.get(block, (-1, -1))
        if cuts[-1][1:] != (direction, run, repetition):
            cuts.append((position, direction, run, repetition))
    edges = [*(cut[0] for cut in cuts[1:]), end]
    return tuple(
        Segment(start, stop, direction, run, repetition)
        for (start, direction, run, repetition), stop in zip(cuts, edges, strict=True)
    )

"""Layouts: how else the same GPUs can divide a model, each priced; nothing is ranked by rule.

Every way that the stack's code has is tried over the GPUs of the setup: copies, copies with sharded
optimizer states, gradients or parameters, tensor parallelism of 2, 4, 8, ... ranks (within a node and
over two of them), pipeline stages, and both together. Where the user named no stack, Megatron's and
DeepSpeed's ways are tried beside PyTorch's; pipelines are Megatron's then. The batch of an optimizer
step stays as it is. Each layout is priced with the smallest micro-batch, and with recomputation where its
tensors do not fit otherwise; the fastest of each way is priced with larger micro-batches too, with
exchanges beside compute and with interleaved chunks.
Checked by: unit/test_worked_advice.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from memcalc.inputs.parallel import divisors
from memcalc.inputs.stacks import base_of
from memcalc.planning.advise.change import Change, Situation, Value
from memcalc.planning.advise.price import Priced, Prices
from memcalc.planning.advise.single import recompute

Degrees = dict[str, Value]
#: The axis of these changes.
LAYOUT: Final = "layout"
#: Options of a layout, taken away before another one is put in their place.
_OWN: Final = (
    "tp", "pp", "vpp", "cp", "dp", "zero", "fsdp", "shard", "reshard", "schedule", "stage-layers",
    "sp", "no-sp", "gpus",
)  # fmt: skip
#: Those that tell one way to divide a model from another.
_WAYS: Final = ("tp", "pp", "fsdp", "shard")
#: Stacks whose code splits layers over ranks, those of them that shard optimizer states beside it,
#: and those that shard copies by ZeRO's stages.
_SPLITS: Final = ("torch", "torchtitan", "megatron", "nanotron", "megatron-deepspeed")
_WITH_ZERO_1: Final = ("megatron", "nanotron", "megatron-deepspeed")
_BY_STAGES: Final = ("deepspeed",)
#: Tried beside PyTorch's where no stack was named.
_OTHERS: Final = ("megatron", "deepspeed")
#: Of one tensor width, stop after so many depths of a pipeline that are each slower than the best.
_WORSE: Final = 1
_DEEPEST: Final = 32
#: Ways to divide a model, fastest first, whose best layout is priced with larger micro-batches too.
_ENLARGED: Final = 5
#: What a layout is polished with, and by how much it must go faster for it.
_POLISH: Final[tuple[Degrees, ...]] = (
    {"overlap-grad-reduce": True},
    {"overlap-param-gather": True},
    {"overlap-grad-reduce": True, "overlap-param-gather": True},
    {"schedule": "interleaved", "vpp": "2"},
    {"schedule": "interleaved", "vpp": "4"},
)
_GAIN: Final = 1.005
#: A rank holds at least its weights and their gradients in 16 bit.
_LEAST_BYTES: Final = 4


def layouts(prices: Prices) -> list[Priced]:
    """Quick prices of every layout that can be priced, recomputation included where it is needed."""
    at = prices.at
    if at.gpus == 1:
        return []
    found: list[Priced] = []
    for stack in stacks(at):
        for degrees in _flat(at, stack):
            found += _made_to_fit(prices, stack, degrees, 1)
        if base_of(stack) in _SPLITS:
            found += _split(prices, stack)
    best: dict[tuple[str, ...], Priced] = {}
    for one in sorted(found, key=lambda one: -one.tokens_per_s):
        if one.fits:
            best.setdefault(way_of(one), one)
    for one in list(best.values())[:_ENLARGED]:
        larger = _enlarged(prices, one)
        found += larger + _polished(prices, (larger or [one])[-1])
    return found


def stacks(at: Situation) -> list[str]:
    """Whose code may run: the stated stack, or the usual ones where none was stated."""
    own = str(at.setup["stack"])
    if "stack" in at.options or at.setup["compile"] or at.setup["peft"] is not None:
        return [own]
    return [own, *_OTHERS]


def _change(at: Situation, stack: str, degrees: Degrees, micro: int) -> Change | None:
    """A layout of all GPUs at the same batch; None where it cannot be cut so."""
    inner = _inner(degrees)
    copies = at.gpus // inner
    if at.gpus % inner or at.batch % copies:
        return None
    micro = max(size for size in divisors(at.batch // copies) if size <= micro)
    options: Degrees = dict.fromkeys(_OWN)
    options |= {"gpus": str(at.gpus), **degrees}
    if (copies, micro) != (at.copies, at.micro):
        options |= {"micro-batch": str(micro), "global-batch": str(at.batch), "grad-accum": None}
    if stack != at.setup["stack"]:
        options |= {"stack": stack, "loss": None, "offload": None}
    return Change(LAYOUT, "same", options)


def way_of(one: Priced) -> tuple[str, ...]:
    """What tells kinds of changes apart: the axis, and of a layout the stack and what divides what."""
    first = one.changes[0]
    if first.axis != LAYOUT:
        return (first.axis,)
    stated = [name for name in _WAYS if first.options.get(name) is not None]
    stage = str(first.options.get("zero") or "")
    return (LAYOUT, str(one.result.setup["stack"]), *stated, stage)


def _inner(degrees: Degrees) -> int:
    return int(str(degrees.get("tp", 1))) * int(str(degrees.get("pp", 1)))


def _flat(at: Situation, stack: str) -> list[Degrees]:
    """Copies of the whole model, with nothing or something of it sharded."""
    if base_of(stack) in _WITH_ZERO_1:
        return [{}, {"zero": "1"}]
    if base_of(stack) in _BY_STAGES:
        return [{"zero": stage} for stage in ("1", "2", "3")]
    found: list[Degrees] = [{}, {"zero": "1"}, {"zero": "2"}, {"fsdp": True}]
    if at.gpus > at.node and at.gpus % at.node == 0:
        found.append({"fsdp": True, "shard": str(at.node)})
    return found


def _split(prices: Prices, stack: str) -> list[Priced]:
    """Tensor and pipeline parallelism, depth after depth for each width."""
    at = prices.at
    deepest = (
        _DEEPEST if base_of(stack) not in ("torch", "torchtitan") or len(stacks(at)) == 1 else 1
    )
    found: list[Priced] = []
    for width in _powers(min(2 * at.node, at.gpus)):
        best, worse = 0.0, 0
        for depth in _powers(min(deepest, at.gpus // width)):
            if width * depth == 1:
                continue
            made = _made_to_fit(prices, stack, _degrees(at, stack, width, depth), 1)
            found += made
            fitting = [priced.tokens_per_s for priced in made if priced.fits]
            if not fitting:
                continue
            worse = worse + 1 if max(fitting) < best else 0
            best = max(best, *fitting)
            if worse >= _WORSE:
                break
    return found


def _degrees(at: Situation, stack: str, width: int, depth: int) -> Degrees:
    degrees: Degrees = {}
    if width > 1:
        degrees["tp"] = str(width)
    if depth > 1:
        degrees["pp"] = str(depth)
    if at.gpus // (width * depth) > 1:
        degrees |= {"zero": "1"} if base_of(stack) in _WITH_ZERO_1 else {"fsdp": True}
    return degrees


def _powers(most: int) -> Iterator[int]:
    number = 1
    while number <= most:
        yield number
        number *= 2


def _too_large(at: Situation, degrees: Degrees) -> bool:
    """Whether weights and gradients alone are too much, wherever parameters are not sharded."""
    if "fsdp" in degrees or degrees.get("zero") in ("2", "3") or at.setup["peft"] is not None:
        return False
    least = at.result.model.parameters * _LEAST_BYTES / _inner(degrees)
    return least > (at.case.device.usable_bytes or 0)


def _made_to_fit(prices: Prices, stack: str, degrees: Degrees, micro: int) -> list[Priced]:
    """The layout as it is, and where its tensors do not fit the mildest recomputation that helps."""
    if _too_large(prices.at, degrees):
        return []
    change = _change(prices.at, stack, degrees, micro)
    plain = None if change is None else prices.quick(change)
    if change is None or plain is None:
        return []
    if plain.fits or prices.at.setup["recompute"] == "full":
        return [plain]
    found = [plain]
    for word in ("full", "selective"):
        again = prices.quick(change, recompute(word))
        if again is None:
            continue
        found.append(again)
        if not again.fits:
            break
    return found


def _enlarged(prices: Prices, one: Priced) -> list[Priced]:
    """A layout with larger micro-batches, as far as each is faster and its tensors fit."""
    layout, *others = one.changes
    at = prices.at
    found: list[Priced] = []
    copies, best = int(one.result.setup["dp"] or 1), one.tokens_per_s
    micro = int(one.result.setup["micro_batch_size"])
    while (micro := 2 * micro) <= at.batch // copies:
        options = at.same_batch(copies, micro)
        if options is None:
            break
        priced = prices.quick(layout._replace(options={**layout.options, **options}), *others)
        if priced is None or not priced.fits or priced.tokens_per_s <= best:
            break
        best = priced.tokens_per_s
        found.append(priced)
    return found


def _polished(prices: Prices, one: Priced) -> list[Priced]:
    """A layout with exchanges beside compute and chunks of stages in turn, where each is faster."""
    found: list[Priced] = []
    staged = int(one.result.setup["pp"] or 1) > 1
    for options in _POLISH:
        if "schedule" in options and not staged:
            continue
        layout, *others = one.changes
        priced = prices.quick(layout._replace(options={**layout.options, **options}), *others)
        if priced is not None and priced.fits and priced.tokens_per_s > one.tokens_per_s * _GAIN:
            one = priced
            found.append(one)
    return found


def schedules(at: Situation) -> Iterator[Change]:
    """Other orders of a pipeline's micro-batches, and what may run beside what."""
    setup = at.setup
    if setup["pp"] > 1:
        for chunks in ("2", "4"):
            if setup["vpp"] != int(chunks):
                options: Degrees = {"schedule": "interleaved", "vpp": chunks}
                yield Change("schedule", "same", options)
        for name in ("1f1b", "zb-h1", "zb-v"):
            if setup["schedule"] != name:
                yield Change("schedule", "same", {"schedule": name, "vpp": None})
    for name in ("overlap-grad-reduce", "overlap-param-gather"):
        if at.gpus > 1 and setup[name.replace("-", "_")] is not True:
            yield Change(name, "same", {name: True})
    if setup["fsdp"] and setup["reshard"] is None:
        yield Change("reshard", "same", {"reshard": "false"})
    if setup["tp"] > 1 and not setup["sp"]:
        yield Change("sp", "same", {"sp": True, "no-sp": None})

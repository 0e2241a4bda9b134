"""When DeepSpeed's ZeRO gathers parameters, lets them go, and reduces gradients: by hand, event for event."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import alive_by_category
from memcalc.engine.parallel.deepspeed.zero_buckets import Buckets, Flat, part_elements
from memcalc.engine.parallel.deepspeed.zero_gather import Gathers
from memcalc.engine.parallel.deepspeed.zero_modules import Module, modules_of, parameters_of
from memcalc.engine.sizes import number
from memcalc.engine.structure import Structure
from memcalc.engine.tensors import Tape
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup


def told(tape: Tape) -> list[str]:
    """Events as `+name elements` and `-name elements`, of 2 bytes each."""
    sizes = [size.value({}) // 2 for size in tape.sizes]
    return [
        f"+{tape.names[e]} {sizes[e]}" if e >= 0 else f"-{tape.names[~e]} {sizes[~e]}"
        for e in tape.events
    ]


def gathers(**changes: object) -> Gathers:
    """Three modules of 40 elements in two blocks, and a small one that is always whole."""
    modules = (
        Module(0, "a", (("layers.0.a", 40),)),
        Module(0, "n", (("layers.0.n", 5),)),
        Module(0, "b", (("layers.0.b", 40),)),
        Module(1, "c", (("layers.1.c", 40),)),
    )
    fields: dict[str, object] = {
        "modules": modules, "recomputed": frozenset(), "ranks": 2, "dtype": "bf16",
        "prefetch": 50, "most_live": 100, "reuse": 1, "persistent": 10,
    }  # fmt: skip
    return Gathers(**fields | changes)  # type: ignore[arg-type]


def run(injector: Gathers, *ops: tuple[int, str]) -> list[str]:
    """The events of these operators, one after the other."""
    tape = Tape()
    hooks = injector.start(SimpleNamespace(tape=tape))  # type: ignore[arg-type]
    assert hooks.before_op and hooks.phase
    for block, op in ops:
        hooks.before_op(block, op)
    hooks.phase("end")
    return told(tape)


FORWARD = [(0, "a"), (0, "b"), (1, "c"), (-1, "loss")]
BACKWARD = [(1, "c"), (0, "b"), (0, "a")]


def test_modules_are_gathered_ahead_and_freed_once_used():
    """b and c come in one flat tensor, copied out at b, gone at c; a is gathered again in time."""
    assert run(gathers(), *FORWARD, *BACKWARD) == [
        "+param_buffer 40", "+flat_tensor 80",  # a at once; b and c ahead
        "-param_buffer 40", "+cat 40", "+cat 40", "+param_buffer 40",  # b: a done, a for backward
        "-flat_tensor 80",  # c
        "-cat 40", "-cat 40", "-param_buffer 40",  # backward: c, b, a in that order
    ]  # fmt: skip


def test_without_prefetch_and_reuse_every_module_is_gathered_alone():
    events = run(gathers(prefetch=0, reuse=0), *FORWARD, *BACKWARD)
    assert events == ["+param_buffer 40", "-param_buffer 40"] * 6


def test_reuse_keeps_what_backward_reads_first():
    """c, last in forward, is first in backward: within reach it stays, one gather fewer."""
    events = run(gathers(prefetch=0, reuse=1), *FORWARD, *BACKWARD)
    assert events.count("+param_buffer 40") == 5


def test_a_recomputed_block_fetches_its_modules_once_more_in_forward_order():
    order = [m.op for m in gathers(recomputed=frozenset({0})).order()]
    assert order == ["a", "n", "b", "c", "c", "b", "a", "n", "b", "n", "a"]


def live_gathered(structure: Structure, values: dict[str, int]) -> list[int]:
    """Bytes of whole parameters and of flat tensors on their way, after each event."""
    ops = {"unshard", "all_gather"}
    live, course = 0, []
    for event in structure.events:
        storage = event if event >= 0 else ~event
        if structure.labels[structure.labels_of[storage]].op in ops:
            size = structure.sizes[storage].value(values)
            live += size if event >= 0 else -size
        course.append(live)
    return course


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_gathered_parameters_stay_near_the_limit_of_live_ones(recompute):
    """At most 1e9 elements are whole or coming, but for one gather more, and flat tensors twice."""
    setup = TrainingSetup(stack="deepspeed", recompute=recompute)
    plan = plan_of(load_model("llama-3.1-8b"), setup, None, ParallelPlan(dp=8, zero=3))
    structure, _ = plan.structure(True)
    course = live_gathered(structure, plan.values)
    head = 128256 * 4096
    assert 2 * 0.8e9 < max(course) < 2 * (1e9 + 2 * head)
    assert course[-1] == 0


def test_a_rank_gathers_every_parameter_of_the_model_at_least_twice():
    """Once in forward, once in backward, but for what stays in between or is small."""
    plan = plan_of(
        load_model("llama-3.1-8b"), TrainingSetup(stack="deepspeed"), None,
        ParallelPlan(dp=8, zero=3),
    )  # fmt: skip
    structure, _ = plan.structure(True)
    labels = structure.labels
    gathered = sum(
        structure.sizes[i].value(plan.values)
        for i, label in enumerate(structure.labels_of)
        if labels[label].op == "unshard"
    )
    parameters = 8_030_261_248
    assert 2 * 2 * (parameters - 1e9) < gathered < 2 * 2 * parameters


def reduced(buckets: Buckets, *names: str, **build: bool) -> tuple[list[str], Tape]:
    """Events while gradients of these parameters come, in this order."""
    tape = Tape()
    flags = {"has_gradients": False, "reduces": True} | build
    hooks = buckets.start(SimpleNamespace(tape=tape, **flags))  # type: ignore[arg-type]
    assert hooks.gradient_ready and hooks.phase
    for name, size in buckets.parameters:
        tape.leaf(name, (number(size),), buckets.dtype)
    hooks.phase("backward")
    for name in names:
        leaf = tape.leaf(name, (), "bf16")
        leaf.grad = tape.empty(f"gradient {name}", leaf.shape, "bf16")
        hooks.gradient_ready(leaf)
    hooks.phase("end")
    return told(tape), tape


def buckets(stage: int, *sizes: int, limit: int = 100, ranks: int = 2) -> Buckets:
    parameters = tuple((f"p{i}", size) for i, size in enumerate(sizes))
    return Buckets(stage, limit, False, ranks, "bf16", parameters)


def test_stage_2_frees_gradients_as_they_come():
    """p3 (180, more than the bucket) is the last rank's part; the others are of the first rank."""
    events, tape = reduced(buckets(2, 60, 60, 60, 180), "p3", "p2", "p1", "p0")
    assert events == [
        "+gradient p3 180", "+ipg_buffer 100",
        "+gradient p2 60", "+grads_in_partition 180", "-gradient p3 180", "-gradient p2 60",
        "+gradient p1 60", "-gradient p1 60", "+gradient p0 60", "-gradient p0 60",
        "-ipg_buffer 100",
    ]  # fmt: skip
    assert [g.storage.index for g in tape.gradients] == [tape.names.index("grads_in_partition")]


def test_slices_for_several_ranks_are_joined_in_one_more_tensor():
    """Both gradients of one bucket, half for each rank: 100 elements are copied to be summed."""
    events, _ = reduced(buckets(2, 50, 50), "p1", "p0")
    joined = events.index("+flatten 100")
    assert events[joined + 1] == "-flatten 100"
    assert events[joined + 2] == "+grads_in_partition 50"


def test_stage_1_keeps_gradients_until_backward_is_over():
    events, _ = reduced(buckets(1, 60, 60, 60, 180), "p3", "p2", "p1", "p0")
    made = [e for e in events if e.startswith("+gradient")]
    assert events.index("-gradient p0 60") > events.index(made[-1])
    part = events.index("+grads_in_partition 180")
    assert events.index("-gradient p0 60") < part < events.index("-gradient p3 180")
    assert events[-1] == "-ipg_buffer 100"


def test_stage_1_micro_batches_before_the_last_reduce_nothing():
    events, tape = reduced(buckets(1, 60, 60), "p1", "p0", reduces=False)
    assert events == ["+gradient p1 60", "+ipg_buffer 100", "+gradient p0 60"]
    assert len(tape.gradients) == 1  # the bucket waits too


def test_stage_3_interleaves_parts_in_one_more_tensor():
    """Parts padded to whole ranks: 61 + 33 elements become 62 + 34."""
    events, _ = reduced(buckets(3, 33, 61), "p1", "p0")
    assert events == [
        "+gradient p1 61", "-gradient p1 61", "+gradient p0 33", "-gradient p0 33",
        "+cat 96", "-cat 96",
    ]  # fmt: skip


def test_parts_of_the_flat_list():
    flat = Flat((("a", 5), ("b", 6)), 2)
    assert flat.part == part_elements(11, 2) == 6
    assert list(flat.pieces("b")) == [(0, 1), (1, 5)]
    assert list(flat.slices(["a", "b"])) == [6, 5]
    assert [flat.touched(rank) for rank in (0, 1)] == [11, 6]


def test_modules_name_every_parameter_of_every_layer_once():
    plan = plan_of(
        load_model("llama-3.2-1b"), TrainingSetup(stack="deepspeed"), None, ParallelPlan(dp=2)
    )
    parameters = parameters_of(modules_of(plan))
    assert sum(size for _, size in parameters) == 1_235_814_400
    assert parameters[0] == ("embedding.weight", 128256 * 2048)
    assert len(parameters) == 2 + 16 * 9  # tied: the head is the embedding
    assert ("layers.15.down_proj.weight", 8192 * 2048) in parameters


def test_buckets_are_in_the_breakdown_as_buffers():
    setup = TrainingSetup(stack="deepspeed", recompute="full", seq_len=128)
    plan = plan_of(load_model("llama-3.2-1b"), setup, None, ParallelPlan(dp=4, zero=2))
    structure, runs = plan.structure(False)
    made = next(i for i, e in enumerate(structure.events) if structure.names[e] == "ipg_buffer")
    alive = alive_by_category(structure, runs, plan.values, (made, ()))
    assert alive["buffers"] >= 2 * 500_000_000

"""Stages of a pipeline: what they add up to, what may be asked of them, and what is played of a step."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest

from memcalc import ParallelPlan, TrainingSetup, estimate
from memcalc.engine.allocator.replay import simulate
from memcalc.engine.make_plan import plan_of
from memcalc.engine.parallel.pipeline import pipeline_stream
from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.pipeline import stage_of
from memcalc.engine.parallel.pipeline.pipeline_memory import place_of, stage_memory
from memcalc.engine.parallel.pipeline.pipeline_program import Item, Take
from memcalc.engine.parallel.pipeline.pipeline_rules import RULES
from memcalc.engine.parallel.pipeline.pipeline_stream import stage_program
from memcalc.engine.parallel.ranks import chunk_layers
from memcalc.engine.plan import Plan
from memcalc.engine.program import Stream
from memcalc.engine.results import Estimate
from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import SCHEDULES

VPP = {"interleaved": 2}
TORCH = [(schedule, "torch") for schedule in SCHEDULES]
ALL = [*TORCH, ("1f1b", "megatron"), ("interleaved", "megatron")]


def small(layers: int = 8, tied: bool = False, **changes: int) -> ModelConfig:
    """A Llama of few and narrow layers."""
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096, **changes}  # fmt: skip
    model = load_model("llama-3.2-1b")
    return replace(model, num_hidden_layers=layers, tie_word_embeddings=tied, **sizes)


def setup(stack: str = "torch", batches: int = 8, **stated: object) -> TrainingSetup:
    given = {"seq_len": 128, "precision": "bf16-mixed", "grad_accum_steps": batches, **stated}
    return TrainingSetup(stack=stack, **given)  # type: ignore[arg-type]


def layout(schedule: str = "1f1b", pp: int = 4, **stated: object) -> ParallelPlan:
    given = {"pp": pp, "vpp": VPP.get(schedule, 1), "schedule": schedule, **stated}
    return ParallelPlan(**given)  # type: ignore[arg-type]


def estimated(model: ModelConfig, given: TrainingSetup, parallel: ParallelPlan) -> Estimate:
    return estimate(model, given, parallel=parallel, allocator=False)


def numbers(result: Estimate) -> dict[str, object]:
    """An estimate's memory as plain values."""
    return {**result.memory._asdict(), "breakdown": result.memory.breakdown._asdict()}


@pytest.mark.parametrize(("schedule", "stack"), ALL)
def test_parameters_of_the_stages_are_the_models(schedule: str, stack: str) -> None:
    result = estimated(small(), setup(stack), layout(schedule))
    held = [one.stage.parameters for one in result.memory.stages if one.stage is not None]
    assert len(held) == 4
    assert sum(held) == result.model.parameters
    need = [one.peak_allocated_bytes for one in result.memory.stages]
    assert result.memory.peak_allocated_bytes == max(need)
    assert result.memory.stage is not None
    assert need[result.memory.stage.stage] == max(need)


def test_a_tied_head_has_a_copy_on_the_last_stage_of_megatron() -> None:
    model = small(tied=True)
    result = estimated(model, setup("megatron"), layout())
    held = [one.stage.parameters for one in result.memory.stages if one.stage is not None]
    rows = 4096 // 128 * 128
    assert sum(held) == result.model.parameters + rows * model.hidden_size
    assert any("is its embedding" in note for note in result.notes)


def test_pytorch_has_no_copy_of_a_tied_head() -> None:
    with pytest.raises(ConfigError, match="keeps no copy of it on the last stage; valid: 1, "):
        estimated(small(tied=True), setup(), layout())


@pytest.mark.parametrize("stack", ["torch", "megatron"])
def test_one_stage_is_the_estimate_without_stages(stack: str) -> None:
    model, given = small(), setup(stack)
    plain = numbers(estimate(model, given, gpu="h100-80gb"))
    one = estimate(model, given, gpu="h100-80gb", parallel=ParallelPlan(pp=1, schedule="gpipe"))
    assert numbers(one) == plain
    assert one.memory.stages == ()


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_a_rank_with_more_in_flight_needs_more(schedule: str) -> None:
    """Equal stages differ by what is in flight: 1F1B's earlier ones need more, GPipe's do not."""
    plan = plan_of(small(), setup(), None, layout(schedule, 4, stage_layers=(1, 3, 3, 1)))
    first, second = (stage_memory(stage_of(plan, rank)) for rank in (1, 2))
    flights = [place_of(stage_of(plan, r), first).in_flight for r in (1, 2)]
    if schedule == "1f1b":
        assert flights == [(3,), (2,)]
        assert first.saved_bytes * 2 == second.saved_bytes * 3
        assert first.phases["backward"] > second.phases["backward"]
    else:
        assert flights == [(8,), (8,)]
        assert first.saved_bytes == second.saved_bytes


def test_layers_of_chunks() -> None:
    """Evenly, the first chunks one more; or as stated, chunk by chunk."""
    plan = plan_of(small(10), setup(), None, layout())
    assert [len(layers) for layers in chunk_layers(plan)] == [3, 3, 2, 2]
    stated = layout("interleaved", 2, stage_layers=(0, 4, 5, 1))
    plan = plan_of(small(10), setup(), None, stated)
    assert chunk_layers(plan) == [range(0), range(4), range(4, 9), range(9, 10)]
    assert place_of(stage_of(plan, 0), stage_memory(stage_of(plan, 0))).layers == ((), (4, 8))


REFUSED = [
    (layout(pp=9), setup(), "pp: got 9; rule: a block for each chunk; valid: 1 to 8"),
    (layout(stage_layers=(4, 4)), setup(), "4 numbers that sum to the 8 layers"),
    (layout(stage_layers=(4, 0, 2, 2)), setup(), "only the first and the last may have no block"),
    (layout(), setup(batches=2), "at least a micro-batch for each of the 4 stages"),
    (layout("interleaved"), setup("megatron", 6), "a multiple of the stages; nearest valid: 8"),
    (layout("gpipe"), setup("megatron"), "schedule: got 'gpipe' with stack megatron; valid: 1f1b"),
    (layout("zb-v"), setup(recompute="full"), "recomputes a block once for every parameter"),
    (layout("zb-h1"), setup(loss="chunked"), "valid: fp32, plain, fused"),
    (layout(), setup("hf"), "stack hf, whose code has no stages; valid: 1, or --stack torch"),
]


@pytest.mark.parametrize(("parallel", "given", "said"), REFUSED)
def test_refusals_are_one_line_with_what_is_valid(
    parallel: ParallelPlan, given: TrainingSetup, said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        plan_of(small(), given, None, parallel)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_megatrons_1f1b_runs_with_fewer_micro_batches_than_stages(batches: int) -> None:
    """InternLM's published runs have 4 micro-batches on 5, 6 and 16 stages."""
    plan = plan_of(small(), setup("megatron", batches), None, layout(pp=8))
    for rank in range(8):
        stage = stage_of(plan, rank)
        flights = place_of(stage, stage_memory(stage)).in_flight
        assert flights == (min(batches, 8 - rank),)


@pytest.mark.parametrize("name", RULES)
def test_a_step_of_every_runtime_ends_as_it_began(name: str) -> None:
    """What a step takes it drops, but for what the next one finds in its place."""
    pipe = Pipe(4, 1, 6)
    for rank in range(4):
        step = RULES[name].step("1f1b", pipe, rank)
        alive = list(step.standing)
        for one in step.instructions:
            if isinstance(one, Action):
                made = Item({"F": "stream", "B": "gradient"}[one.kind], one.chunk, one.batch)
                alive += [made] if made[:2] != ("gradient", 0) else []
            elif isinstance(one, Take):
                alive.append(one.item)
            else:
                alive.remove(one.item)
        renewed = dict(step.renewed)
        expected = [renewed.get(item, item) for item in step.standing]
        assert sorted(alive) == sorted([*expected, *step.left]), rank


def streams(plan: Plan, rank: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Stream, Stream]:
    """What is played of two steps, and the same with every micro-batch."""
    stage = stage_of(plan, rank)
    short = stage_program(stage, ())
    with monkeypatch.context() as patch:
        patch.setattr(pipeline_stream, "played_pipe", lambda schedule, pipe, rank: pipe)
        return short, stage_program(stage, ())


def most_alive(stream: Stream) -> int:
    """Bytes of tensors at the peak of a stream, in which nothing is freed that is not there."""
    alive: set[int] = set()
    for event in stream.events:
        if event >= 0:
            assert event not in alive
            alive.add(event)
        else:
            alive.remove(~event)
    change = (stream.sizes[e] if e >= 0 else -stream.sizes[~e] for e in stream.events)
    return max(accumulate(change))


@pytest.mark.parametrize(("schedule", "stack"), ALL)
def test_what_is_played_of_a_step_stands_for_all_of_it(
    schedule: str, stack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"hidden_size": 1024, "intermediate_size": 2816, "head_dim": 256, "vocab_size": 32000}
    plan = plan_of(small(**wide), setup(stack, 16, seq_len=512), None, layout(schedule, 2))
    for rank in (0, 1):
        short, whole = streams(plan, rank, monkeypatch)
        requested = stage_memory(stage_of(plan, rank)).peak_bytes
        assert most_alive(whole) == requested
        assert most_alive(short) == pytest.approx(requested, rel=0.001)
        some, all_of_it = (simulate(tuple(s.events), tuple(s.sizes)) for s in (short, whole))
        assert some.peak_allocated_bytes == pytest.approx(all_of_it.peak_allocated_bytes, rel=0.01)
        assert some.peak_reserved_bytes == pytest.approx(all_of_it.peak_reserved_bytes, rel=0.05)


@pytest.mark.parametrize("stated", [{"fsdp": True}, {}], ids=["fsdp", "ddp"])
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
def test_what_is_played_beside_data_parallelism(
    schedule: str, stated: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(small(), setup(), None, layout(schedule, 2, dp=2, **stated))
    for rank in (0, 1):
        short, whole = streams(plan, rank, monkeypatch)
        requested = stage_memory(stage_of(plan, rank)).peak_bytes
        assert most_alive(whole) == requested
        assert most_alive(short) == pytest.approx(requested, rel=0.02)


@pytest.mark.parametrize(
    ("counts", "schedule"), [((0, 5, 3, 0), "1f1b"), ((0, 3, 4, 1), "interleaved")]
)
def test_megatrons_ends_may_hold_no_block(counts: tuple[int, ...], schedule: str) -> None:
    """account_for_embedding_in_pipeline_split, account_for_loss_in_pipeline_split."""
    pp = 4 if schedule == "1f1b" else 2
    plan = plan_of(small(), setup("megatron"), None, layout(schedule, pp, stage_layers=counts))
    held = [stage_memory(stage_of(plan, rank)) for rank in range(pp)]
    even = plan_of(small(), setup("megatron"), None, layout(schedule, pp))
    whole = sum(stage_memory(stage_of(even, rank)).states.parameters for rank in range(pp))
    assert sum(one.states.parameters for one in held) == whole
    if schedule == "1f1b":
        assert held[0].peak.op in ("embedding", "optimizer")
        assert held[3].peak.op in ("lm_head", "loss", "final_norm", "optimizer")

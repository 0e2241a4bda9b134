"""Two ranks on gloo against one process: losses, bytes of each rank, and what happens when one fails."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.harness.step import TrainingStep
from tests.harness.ranks_cases import CASES, GRIDS, STEPS, Case, plan_of_case

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5  # of a loss in fp32; sums over ranks are in another order
Found = list[dict[str, Any]]


def torchrun(*words: object, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """So many processes of the program beside this file, one thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(__file__).with_name("ranks_program.py")
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*start, "--master-port", str(port), str(program), *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


#: Cases that tests name themselves.
_ALWAYS = ("ddp", "fsdp", "tp", "tp-sp", "pp-1f1b", "pp-gpipe", "pp-uneven")


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of two ranks wrote of every case that is asked for: one launch for all."""
    return _launched(tmp_path_factory.mktemp("ranks"), 2, {*_ALWAYS, *_asked(request)} & {*CASES})


@pytest.fixture(scope="module")
def grids(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The same of four ranks."""
    return _launched(tmp_path_factory.mktemp("ranks"), 4, _asked(request) & {*GRIDS})


def _asked(request: pytest.FixtureRequest) -> set[str]:
    """Names of the cases that tests of this file take."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    return {str(call.params["name"]) for call in calls if call and "name" in call.params}


def _launched(out: Path, ranks: int, names: set[str]) -> Found:
    done = torchrun(out, *sorted(names), ranks=ranks)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_one_process(found: Found, name: str) -> None:
    _same_losses(CASES[name], [seen[name]["losses"] for seen in found])


@pytest.mark.parametrize("name", GRIDS)
def test_two_degrees_at_once_give_the_losses_of_one_process(grids: Found, name: str) -> None:
    _same_losses(GRIDS[name], [seen[name]["losses"] for seen in grids])


def _same_losses(case: Case, by_rank: list[list[float | None]]) -> None:
    one = TrainingStep(plan_of_case(case, 2 * case.layout.dp), "cpu")
    expected = []
    for _ in range(STEPS):
        loss = one.run(keep_loss=True)
        assert loss is not None
        expected.append(float(loss))
    having = [losses for losses in by_rank if losses[0] is not None]
    assert len(having) == case.layout.size // case.layout.pp  # the last stage's ranks
    mean = [sum(losses) / len(having) for losses in zip(*having, strict=True)]
    # Mixed precision rounds at other places: under FSDP the policy casts norms and stream as well.
    tolerance = 1e-3 if plan_of_case(case).kernels.autocast else TOLERANCE
    assert mean == pytest.approx(expected, rel=tolerance)
    assert abs(expected[-1] - expected[0]) > 0.05  # the steps do something


@pytest.mark.parametrize("rank", range(2))
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.mem_tracker])
def test_a_ranks_peak_is_what_torchs_own_tracker_sees(found: Found, name: str, rank: int) -> None:
    seen = found[rank][name]
    # MemTracker also counts Adam's step, a scalar of 4 bytes for each parameter, kept on the host.
    peak = seen["tensors"]["peak_requested_bytes"]
    assert peak + seen["host_bytes"] == seen["mem_tracker"]


DATA = [name for name, case in CASES.items() if case.layout.dp == 2 and case.layout.ep == 1]


@pytest.mark.parametrize("name", DATA)
def test_data_parallel_ranks_save_what_one_process_saves(found: Found, name: str) -> None:
    plan = plan_of_case(CASES[name])
    if CASES[name].layout.fsdp and plan.kernels.autocast:
        plan = _in_16_bit(name)  # the policy casts, not the decoder: blocks see 16-bit parameters
    for rank in range(2):
        saved = found[rank][name]["tensors"]["saved_for_backward_bytes"]
        late = saved - step_memory(plan).saved_bytes
        assert 0 <= late <= _gathered(name)


def _gathered(name: str) -> int:
    """Bytes of parameters that can be gathered, which gloo's threads may hold a while longer."""
    if not CASES[name].layout.fsdp:
        return 0
    held = step_memory(plan_of_case(CASES[name])).states
    return held.parameter_bytes


def _in_16_bit(name: str) -> Plan:
    case = CASES[name]
    return plan_of_case(replace(case, setup={**case.setup, "precision": "bf16"}))


def test_ddp_holds_its_buckets_beside_the_step_of_one_process(found: Found) -> None:
    said = step_memory(plan_of_case(CASES["ddp"]))
    tensors = found[0]["ddp"]["tensors"]
    assert tensors["peak_at"] == "backward/loss"
    assert tensors["phases"]["loss"] == said.phases["loss"] + said.states.gradient_bytes
    assert tensors["states"]["gradients"] == said.states.gradient_bytes


@pytest.mark.parametrize("name", ["fsdp", "fsdp-full"])
def test_fsdp_halves_the_states_and_gathers_a_part(found: Found, name: str) -> None:
    whole, parameters = step_memory(plan_of_case(CASES[name])).states, 0
    for rank in range(2):
        tensors = found[rank][name]["tensors"]
        states = tensors["states"]
        parameters += states["parameters"]
        assert states["parameters"] == states["gradients"]
        assert states["optimizer"] == (2 * states["parameters"] if name == "fsdp" else 0)
        # Where forward ends the root's group is gathered: embedding, final norm, head.
        assert tensors["gathered_bytes"] == 4 * (2 * 500 * 64 + 64)
    assert parameters == whole.parameter_bytes


def test_gathered_parameters_are_a_category_of_their_own(found: Found) -> None:
    tensors = found[0]["fsdp"]["tensors"]
    breakdown = tensors["breakdown"]
    assert breakdown["gathered"] >= tensors["gathered_bytes"]
    assert sum(breakdown.values()) == tensors["peak_requested_bytes"]
    assert breakdown["parameters"] == tensors["states"]["parameters"]


def test_sequence_parallelism_keeps_half_the_stream(found: Found) -> None:
    plain = found[0]["tp"]["tensors"]["saved_for_backward_bytes"]
    split = found[0]["tp-sp"]["tensors"]["saved_for_backward_bytes"]
    tokens, h, layers = 96, 64, 2
    # Each norm, the final one too, keeps its input, x / rms and 1 / rms, the stream adds none.
    norms = (2 * layers + 1) * (2 * 4 * tokens * h + 4 * tokens)
    assert plain - split == pytest.approx(norms / 2, rel=0.03)


def test_1f1b_holds_as_many_micro_batches_as_there_are_stages_below(found: Found) -> None:
    first = [
        found[0][name]["tensors"]["saved_for_backward_bytes"] for name in ("pp-1f1b", "pp-gpipe")
    ]
    last = [
        found[1][name]["tensors"]["saved_for_backward_bytes"] for name in ("pp-1f1b", "pp-gpipe")
    ]
    assert 3 * first[0] == 2 * first[1]  # of three micro-batches: two, three
    assert 3 * last[0] == last[1]  # one, three


def test_stages_share_the_parameters(found: Found) -> None:
    whole = step_memory(plan_of_case(CASES["pp-uneven"])).states.parameter_bytes
    parts = [found[rank]["pp-uneven"]["tensors"]["states"]["parameters"] for rank in range(2)]
    block = (whole - 4 * (2 * 500 * 64 + 64)) // 3
    assert sum(parts) == whole
    assert parts == [4 * 500 * 64 + 2 * block, 4 * (500 * 64 + 64) + block]


def test_a_rank_out_of_memory_ends_the_others_in_seconds(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "oom")
    over = time.time()
    assert done.returncode != 0 and "exitcode  : 3" in done.stderr, done.stderr[-3000:]
    assert over - (tmp_path / "raised").stat().st_mtime < 28  # torchrun kills what is left after 30
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "oom" and result["error"]["rank"] == 1
    assert result["error"]["asked_bytes"] == 4096 and result["error"]["stage"] == "warm-up"
    other = result["ranks"][0]
    assert other["status"] == "failed" and other["error"]["type"] == "Stopped"
    assert other["error"]["message"] == "rank 1 failed"
    assert other["error"]["stage"] == "warm-up" and other["time"]["first_step_s"] > 0


def test_a_tracker_outside_ranks_sees_storages_resized() -> None:
    from memcalc.harness.watch.tracker import RESIZED, StorageTracker

    kept, before = torch.zeros(100), torch.UntypedStorage.resize_
    tracker = StorageTracker("cpu")
    tracker.track(kept)
    with tracker:
        kept.untyped_storage().resize_(0)
        assert tracker.live == 0
        kept.untyped_storage().resize_(800)
        assert tracker.live == tracker.peak == 800
    assert [alloc.aten for alloc in tracker.live_storages()] == [RESIZED]
    del kept
    assert tracker.live == 0
    assert torch.UntypedStorage.resize_ is before

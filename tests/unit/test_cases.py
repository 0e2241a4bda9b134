"""Cases, their exact estimates, and the flat rows made of them."""

from __future__ import annotations

import pytest

from memcalc import ParallelPlan, TrainingSetup, estimate
from memcalc.engine.device_side import device_of
from memcalc.inputs.models import load_model
from memcalc.planning.cases import Case, Refused, points
from memcalc.planning.rows import KEYS, MEMORY, TIME, row_of

H100 = device_of("h100-80gb")


def case(labels, device=H100, parallel=None, **fields):
    setup = TrainingSetup(**{"seq_len": 128, "num_layers": 2, **fields})
    return Case(
        labels, "memcalc estimate gpt2", "gpt2", load_model("gpt2"), setup,
        parallel or ParallelPlan(), {}, device,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return points(
        [
            case({"micro-batch": "1"}, micro_batch_size=1),
            Refused({"micro-batch": "x"}, "memcalc estimate gpt2", "micro-batch: got x"),
            case({"micro-batch": "2"}, micro_batch_size=2, num_layers=99),
        ]
    )


def test_a_point_is_the_estimate_of_its_case(found):
    alone = estimate("gpt2", found[0].case.setup, gpu="h100-80gb")
    assert found[0].result == alone
    assert found[0].reason is None


def test_a_refused_case_keeps_its_place_and_reason(found):
    assert [point.result is None for point in found] == [False, True, True]
    assert found[1].reason == "micro-batch: got x"
    assert "at most 12" in found[2].reason


def test_progress_hears_of_every_case():
    heard = []
    cases = [Refused({}, "", "no")] * 3
    points(cases, lambda *told: heard.append(told))
    assert heard == [("estimates", 1, 3), ("estimates", 2, 3), ("estimates", 3, 3)]


def test_a_row_holds_the_numbers_of_the_estimate(found):
    row = row_of(found[0])
    plain = found[0].result.to_dict()
    assert tuple(row) == KEYS
    for name in MEMORY:
        assert row[name] == plain["memory"][name] is not None
    for name in TIME:
        assert row[name] == plain["time"][name] is not None
    assert (row["fits"], row["verdict"], row["gpu"], row["gpus"]) == (True, "fits", "h100-80gb", 1)
    assert (row["calibration"], row["reserved"]) == ("default-hopper", "simulated")
    assert row["labels"] == {"micro-batch": "1"}


def test_a_row_of_a_refused_case_has_its_reason_and_no_number(found):
    row = row_of(found[2])
    assert tuple(row) == KEYS
    assert (row["model"], row["gpu"]) == ("gpt2", "h100-80gb")
    assert all(row[name] is None for name in (*MEMORY, *TIME, "gpus", "fits", "verdict"))
    assert "at most 12" in row["reason"]
    assert row_of(found[1])["model"] is None


def test_a_price_becomes_dollars_a_million_tokens(found):
    rate = found[0].result.time.tokens_per_s
    assert row_of(found[0], 3.6)["usd_per_million_tokens"] == pytest.approx(1000 / rate)
    gpu = H100.gpu
    middle = (gpu.price_usd_per_hour_low + gpu.price_usd_per_hour_high) / 2
    expected = middle / 3600 / rate * 1e6
    assert row_of(found[0])["usd_per_million_tokens"] == pytest.approx(expected)


def test_every_gpu_of_a_layout_is_paid_for():
    (point,) = points([case({}, parallel=ParallelPlan(dp=4, fsdp=True))], allocator=False)
    row = row_of(point, 1.0)
    assert row["gpus"] == 4
    assert row["usd_per_million_tokens"] == pytest.approx(4e6 / 3600 / row["tokens_per_s"])
    assert row["peak_reserved_bytes"] is row["reserved"] is None


def test_without_a_gpu_there_is_memory_and_no_price():
    (point,) = points([case({}, device=device_of(None))])
    row = row_of(point, 2.0)
    assert row["peak_reserved_bytes"] > 0
    assert row["gpu"] is row["fits"] is row["step_s"] is row["usd_per_million_tokens"] is None

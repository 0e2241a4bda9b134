"""The roofline chart: ops under their roofs, nothing left out, the picture equal to its object."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from matplotlib.text import Text

from memcalc.cli.app import parse_arguments
from memcalc.cli.charts.roofline import found as found_of
from memcalc.cli.variants import cases_of
from memcalc.engine.device_side import device_of
from memcalc.engine.make_plan import plan_of
from memcalc.engine.timing.answer import time_estimate
from memcalc.engine.timing.kernel_times import moved_s
from memcalc.engine.timing.optimizer_time import optimizer_s, optimizer_work, stepped_by
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.rates import rates_of
from memcalc.inputs.training import TrainingSetup
from memcalc.output.charts.house import drawn, picture
from memcalc.output.charts.roofline import TERA, draw, page
from memcalc.output.console import render
from memcalc.planning.cases import points
from memcalc.planning.charts.roofline import peak_of, roofline

_STAGES = (
    "--stack",
    "megatron",
    "--gpus",
    "2",
    "--pp",
    "2",
    "--micro-batch",
    "1",
    "--grad-accum",
    "4",
)


def _found(*words: str, model: str = "gpt2") -> dict[str, Any]:
    """The object of a small model, as JSON gives it back."""
    command = parse_arguments("chart", ["roofline", model, "--layers", "2", *words])
    found: dict[str, Any] = json.loads(json.dumps(found_of(command)))
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return _found("--gpu", "h100", "--recompute", "full", "--seq", "1024")


@pytest.mark.parametrize("gpu", ["h100-80gb", "a100-80gb", "b200-180gb", "rtx-4090", "mi300x"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16", "fp16-mixed", "fp32", "tf32"])
def test_no_op_is_faster_than_its_roof(gpu: str, precision: str) -> None:
    device = device_of(gpu)
    assert device.gpu is not None
    bandwidth = device.gpu.memory_bandwidth_bytes_per_s
    for model, fields in (("llama-3.2-1b", {"seq_len": 16384}), ("gpt2", {"seq_len": 128})):
        setup = TrainingSetup(precision=precision, recompute="full", **fields)
        time, _ = time_estimate(plan_of(load_model(model), setup), device)
        for op in time.ops:
            assert op.bytes / op.seconds <= bandwidth, op
            if op.kernel_flops:
                assert op.kernel_flops / op.seconds <= peak_of(op.dtype, device.gpu)[1], op


def test_fp8_products_run_under_the_fp8_peak_and_the_rest_under_bf16() -> None:
    found = _found("--gpu", "h100", "--precision", "fp8-mixed", model="llama-3.1-8b")
    assert {roof["dtype"] for roof in found["roofs"]} == {"fp8", "bf16"}
    for row in found["rows"]:
        if row["flops"]:
            assert row["flops_per_s"] <= row["roof_flops_per_s"]


def test_kernels_run_the_seen_half_of_causal_attention() -> None:
    plan = plan_of(load_model("gpt2"), TrainingSetup(seq_len=512))
    time, _ = time_estimate(plan, device_of("h100"))
    for op in time.ops:
        share = (1 - 511 / 1024) if op.op == "attention" else 1
        assert op.kernel_flops == pytest.approx(share * op.flops, rel=1e-12), op


def test_an_op_above_its_roof_is_named_and_stays_where_it_is() -> None:
    """No rate of ours is above its roof; a faster op is made by hand."""
    words = ["roofline", "gpt2", "--layers", "2", "--gpu", "a100", "--seq", "1024"]
    (point,) = points(cases_of(parse_arguments("chart", words)))
    assert point.result is not None
    time = point.result.time
    ops = tuple(
        op._replace(seconds=op.seconds / 1e4)
        if (op.op, op.direction) == ("attention", "forward")
        else op
        for op in time.ops
    )
    faster = point._replace(result=replace(point.result, time=time._replace(ops=ops)))
    found = roofline(faster)
    (row,) = (row for row in found["rows"] if row["over"])
    assert (row["op"], row["direction"]) == ("attention", "forward")
    assert row["flops_per_s"] == pytest.approx(row["flops"] / row["seconds"])
    assert row["flops_per_s"] > row["roof_flops_per_s"]
    assert "priced above the roof: attention forward" in found["says"]


def test_attention_in_fp32_is_under_the_roof_of_three_products_of_tf32() -> None:
    found = _found("--gpu", "a100", "--precision", "fp32", "--seq", "1024", "--micro-batch", "8")
    (roof,) = (one for one in found["roofs"] if one["dtype"] == "3xtf32")
    assert roof["peak_flops_per_s"] == 156e12 / 3
    assert not any(row["over"] for row in found["rows"])


@pytest.mark.parametrize("words", [(), ("--recompute", "full"), ("--grad-accum", "3"), _STAGES])
def test_shares_of_ops_and_of_the_rest_add_up_to_the_step(words: tuple[str, ...]) -> None:
    found = _found("--gpu", "h100", *words)
    shares = [row["share"] for row in found["rows"]] + [one["share"] for one in found["rest"]]
    assert sum(shares) == pytest.approx(1, rel=1e-9)


def test_the_optimizer_moves_the_bytes_its_seconds_are_made_of() -> None:
    plan = plan_of(load_model("gpt2"), TrainingSetup(optimizer_impl="fused"))
    rates = rates_of(device_of("h100").gpu)  # type: ignore[arg-type]
    stepped = stepped_by([plan])
    flops, moved = optimizer_work(plan, stepped)
    # reads and writes parameters and both states, reads gradients; a step's counter is a scalar
    assert flops == 0 and moved == pytest.approx(stepped.elements * 4 * (2 + 1 + 2 * 2), rel=1e-6)
    launches = -(-stepped.elements // (320 * 65536))
    assert moved_s(rates, moved, launches) == pytest.approx(optimizer_s(rates, plan, stepped))


def test_muon_has_products_of_its_own() -> None:
    found = _found("--gpu", "h100", "--optimizer", "muon")
    (row,) = (row for row in found["rows"] if row["op"] == "optimizer")
    assert row["dtype"] == "bf16" and 0 < row["flops_per_s"] <= row["roof_flops_per_s"]
    assert row["bound"] == "compute"


def test_the_picture_holds_every_op_where_the_object_has_it(found: dict[str, Any]) -> None:
    upper, lower = drawn(found, draw).axes
    named = {(row["part"], row["op"], row["direction"]): row for row in found["rows"]}
    seen = set()
    for axes in (upper, lower):
        for marker in axes.collections:
            key = tuple(str(marker.get_gid()).split(" "))
            row, (x, y) = named[key], marker.get_offsets()[0]
            seen.add(key)
            if axes is upper:
                assert (x, y * TERA) == pytest.approx((row["intensity"], row["flops_per_s"]))
            else:
                assert row["flops_per_s"] is None
                assert x * TERA == pytest.approx(row["bytes_per_s"])
                shown = axes.get_yticklabels()[round(y)].get_text()
                assert shown == row["direction"]
    assert seen == set(named)


def test_the_picture_has_the_roofs_of_the_object(found: dict[str, Any]) -> None:
    upper, lower = drawn(found, draw, "dark").axes
    lines = {line.get_gid(): line.get_xydata() for line in upper.lines}
    (roof,) = found["roofs"]
    assert lines["bf16 peak"][0][1] * TERA == pytest.approx(roof["peak_flops_per_s"])
    assert lines["bf16 reached"][0][1] * TERA == pytest.approx(roof["reached_flops_per_s"])
    for x, y in lines["memory peak"]:
        assert y * TERA == pytest.approx(x * found["memory"]["peak_bytes_per_s"])
    (peak,) = (line for line in lower.lines if line.get_gid() == "memory peak")
    assert peak.get_xdata()[0] * TERA == pytest.approx(found["memory"]["peak_bytes_per_s"])


@pytest.mark.parametrize("words", [("--seq", "128"), ("--seq", "4096", "--recompute", "full")])
def test_no_label_covers_another_or_leaves_the_axes(words: tuple[str, ...]) -> None:
    figure = drawn(_found("--gpu", "h100", *words, model="llama-3.1-8b"), draw)
    for axes in figure.axes:
        # of an annotation the box of its words, without the line to its point
        extents = [Text.get_window_extent(text) for text in axes.texts if text.get_text()]
        frame = axes.get_window_extent().padded(2)
        assert len(extents) >= 3
        for one, other in combinations(extents, 2):
            assert not one.overlaps(other)
        for extent in extents:
            assert frame.x0 <= extent.x0 and extent.x1 <= frame.x1


def test_the_same_object_is_the_same_picture(found: dict[str, Any]) -> None:
    assert picture(found, draw, "svg") == picture(found, draw, "svg")


def test_the_text_has_the_largest_ops_in_eighty_columns(found: dict[str, Any]) -> None:
    text = render(lambda sheet: page(sheet, found), to_file=True)
    assert max(map(len, text.split("\n"))) <= 80 and text.isascii()
    largest = max(found["rows"], key=lambda row: row["share"])
    assert f"{largest['op']}" in text and f"{100 * largest['share']:.1f} %" in text
    assert found["source"] in text


def test_without_a_gpu_there_are_no_roofs() -> None:
    with pytest.raises(ConfigError, match="chart roofline: got no GPU; rule: .*--gpu h100-80gb"):
        _found()

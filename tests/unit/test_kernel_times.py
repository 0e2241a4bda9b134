"""Kernel times: bounded by the datasheet, monotone in it, the same for numbers and for arrays."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.engine.timing.arith import ceil_div, log2, maximum, minimum
from memcalc.engine.timing.attention_time import fused_s
from memcalc.engine.timing.collective_time import curve_of
from memcalc.engine.timing.gemm_time import compute_s, memory_s, product_s
from memcalc.engine.timing.kernel_times import (
    attention_s,
    collective_s,
    decode_attention_s,
    gemm_bound,
    gemm_s,
    grouped_s,
    moved_s,
)
from memcalc.errors import ConfigError
from memcalc.inputs.hardware import load_gpu
from memcalc.inputs.rates import Curve, LinkRate, Rates, rates_of, rescaled

GPUS = ("a100-80gb", "h100-80gb", "h200-141gb", "b200-180gb", "gb200-186gb", "l40s", "mi300x", "t4")
side = st.integers(1, 70_000)
extent = st.tuples(st.integers(1, 64), side, side, side)
faster = st.floats(1.0, 100.0)


def rates(name: str) -> Rates:
    return rates_of(load_gpu(name)[0])


def heads(draw_seq: int, batch: int = 2, width: int = 128) -> tuple[int, ...]:
    return batch, 32, 8, draw_seq, draw_seq, width, width


@pytest.mark.parametrize("name", GPUS)
@given(shape=extent)
@settings(max_examples=40, deadline=None)
def test_a_product_is_never_faster_than_the_datasheet(name, shape):
    gpu = load_gpu(name)[0]
    b, m, n, k = shape
    seconds = gemm_s(rates(name), "fp16", *shape)
    assert seconds >= 2 * b * m * n * k / gpu.peak_flops_per_s["fp16"]
    if not rates(name).gemm["fp16"].cached_bytes:
        assert seconds >= 2 * b * (k * (m + n) + m * n) / gpu.memory_bandwidth_bytes_per_s


@given(shape=extent, peak=faster, bandwidth=faster, name=st.sampled_from(GPUS))
@settings(max_examples=200, deadline=None)
def test_more_peak_or_bandwidth_never_slows_a_product(shape, peak, bandwidth, name):
    rate = rates(name).gemm["fp16"]
    before = product_s(rate, *shape)
    more = rate._replace(flops_per_s=rate.flops_per_s * peak)
    assert product_s(more, *shape) <= before * (1 + 1e-12)
    wider = rate._replace(bytes_per_s=rate.bytes_per_s * bandwidth)
    assert product_s(wider, *shape) <= before * (1 + 1e-12)


@given(shape=extent, name=st.sampled_from(GPUS))
@settings(max_examples=100, deadline=None)
def test_a_larger_product_is_never_faster(shape, name):
    b, m, n, k = shape
    rate = rates(name).gemm["fp16"]._replace(padding=1.0)  # ragged tiles cost what full ones do
    seconds = product_s(rate, b, m, n, k)
    for larger in ((b + 1, m, n, k), (b, m + 1, n, k), (b, m, n + 1, k), (b, m, n, k + 1)):
        assert product_s(rate, *larger) >= seconds * (1 - 1e-12)


def test_a_wave_that_is_not_full_costs_what_spread_says():
    rate = (
        rates("a100-80gb")
        .gemm["bf16"]
        ._replace(spread=0.0, prologue_k=0.0, droop=0.0, small_tile=9.0, padding=1.0)
    )
    full = compute_s(rate, 108, 128, 128, 4096)
    assert compute_s(rate, 109, 128, 128, 4096) == pytest.approx(2 * full)
    evenly = rate._replace(spread=1.0)
    assert compute_s(evenly, 109, 128, 128, 4096) == pytest.approx(109 / 108 * full)


def test_idle_multiprocessors_share_a_long_sum_down_to_the_shortest_stretch():
    rate = (
        rates("a100-80gb")
        .gemm["bf16"]
        ._replace(split_k=0.0, prologue_k=0.0, droop=0.0, small_tile=9.0, padding=1.0)
    )
    full = compute_s(rate, 108, 128, 128, 4096)
    assert compute_s(rate, 1, 128, 128, 4096) == pytest.approx(full / 108)
    assert compute_s(rate._replace(split_k=4096.0), 1, 128, 128, 4096) == pytest.approx(full)


def test_long_products_run_slower_by_the_droop_at_most():
    rate = rates("l40s").gemm["bf16"]._replace(droop=0.3, droop_s=2e-3)
    steady = rate._replace(droop=0.0)
    for batch, low, high in ((1, 1.0, 1.01), (200, 1.1, 1.2), (100_000, 1.29, 1.3)):
        slower = compute_s(rate, batch, 1024, 1024, 1024) / compute_s(
            steady, batch, 1024, 1024, 1024
        )
        assert low < slower < high


def test_operands_in_the_cache_cost_no_memory_time():
    rate = rates("l40s").gemm["bf16"]._replace(cached_bytes=16e6)
    plain = rate._replace(cached_bytes=0.0)
    small, large = (1, 512, 512, 512), (1, 8192, 8192, 8192)
    assert memory_s(rate, *small) < 0.01 * memory_s(plain, *small)
    assert memory_s(rate, *large) == pytest.approx(memory_s(plain, *large), rel=1e-3)


def test_a_grouped_product_reads_every_weight_in_use():
    h200 = rates("h200-141gb")
    dense = gemm_s(h200, "bf16", 1, 8192, 14336, 4096)
    even = grouped_s(h200, "bf16", 8, 8192, 14336, 4096)
    assert dense < even < 1.3 * dense
    one_row = grouped_s(h200, "bf16", 64, 1, 14336, 4096)  # one expert of 64 is used
    assert one_row == pytest.approx(gemm_s(h200, "bf16", 1, 1, 14336, 4096))


def test_parts_of_a_product_take_their_own_time():
    rate = rates("h200-141gb").gemm["bf16"]._replace(wgrad=1.25)
    h200 = replace(rates("h200-141gb"), gemm={"bf16": rate})
    shape = (1, 4096, 4096, 8192)
    assert gemm_s(h200, "bf16", *shape, part="dgrad") == gemm_s(h200, "bf16", *shape)
    wgrad = gemm_s(h200, "bf16", *shape, part="wgrad")
    assert wgrad == pytest.approx(1.25 * gemm_s(h200, "bf16", *shape))
    with pytest.raises(ConfigError, match="part of a product: got 'sideways'"):
        gemm_s(h200, "bf16", *shape, part="sideways")


def test_a_dtype_the_device_has_no_products_in_is_named():
    with pytest.raises(
        ConfigError, match="products in fp8: got none .*; valid: bf16, fp16"
    ) as error:
        gemm_s(rates("a100-80gb"), "fp8", 1, 64, 64, 64)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "bound"),
    [((1, 8192, 8192, 8192), "compute"), ((1, 16, 65536, 65536), "bandwidth"),
     ((1, 16, 16, 16), "latency")],
)  # fmt: skip
def test_what_bounds_a_product(shape, bound):
    assert gemm_bound(rates("h200-141gb"), "bf16", *shape) == bound


@given(
    seq=st.integers(1, 40_000), batch=st.integers(1, 64), width=st.sampled_from((64, 96, 128, 256)),
    name=st.sampled_from(GPUS), causal=st.booleans(),
    direction=st.sampled_from(("forward", "backward")),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_attention_is_never_faster_than_the_datasheet(seq, batch, width, name, causal, direction):
    gpu = load_gpu(name)[0]
    products = 2 if direction == "forward" else 5
    flops = 2 * products * batch * 32 * seq * seq * width * (0.5 if causal else 1.0)
    seconds = attention_s(rates(name), "cudnn", direction, heads(seq, batch, width), causal)
    assert seconds >= flops / gpu.peak_flops_per_s["fp16"]


@given(seq=st.integers(1, 40_000), peak=faster, bandwidth=faster, name=st.sampled_from(GPUS))
@settings(max_examples=100, deadline=None)
def test_more_peak_or_bandwidth_never_slows_attention(seq, peak, bandwidth, name):
    rate = rates(name).attention["flash"]
    before = fused_s(rate, "forward", heads(seq), True)
    more = rate._replace(forward_flops_per_s=rate.forward_flops_per_s * peak)
    wider = rate._replace(bytes_per_s=rate.bytes_per_s * bandwidth)
    assert fused_s(more, "forward", heads(seq), True) <= before
    assert fused_s(wider, "forward", heads(seq), True) <= before


def test_attention_backward_runs_five_products_at_its_own_ceiling():
    rate = rates("h200-141gb").attention["cudnn"]._replace(t0_s=0.0, bytes_per_s=1e30, row=0.0)
    shape = heads(8192)
    forward, backward = (fused_s(rate, d, shape, True) for d in ("forward", "backward"))
    assert backward == pytest.approx(2.5 / rate.backward * forward)
    wide_keys = (2, 32, 32, 8192, 8192, 192, 128)  # 3 * 192 + 2 * 128 over 192 + 128
    forward, backward = (fused_s(rate, d, wide_keys, True) for d in ("forward", "backward"))
    assert backward == pytest.approx(832 / 320 / rate.backward * forward)


def test_attention_that_sees_the_past_only_takes_half_at_long_sequences():
    rate = rates("h200-141gb").attention["cudnn"]._replace(t0_s=0.0, bytes_per_s=1e30, row=0.0)
    causal, full = (fused_s(rate, "forward", heads(32768), c) for c in (True, False))
    assert causal / full == pytest.approx((32768 + 1) / (2 * 32768))
    last = (1, 8, 8, 1, 4096, 128, 128)  # the last query sees all keys
    assert fused_s(rate, "forward", last, True) == fused_s(rate, "forward", last, False)


def test_attention_by_width_meets_the_stated_ceilings():
    rate = (
        rates("h200-141gb")
        .attention["cudnn"]
        ._replace(t0_s=0.0, bytes_per_s=1e30, row=0.0, narrow=0.5, wide=1.25)
    )
    base = fused_s(rate, "forward", heads(4096, width=128), True)
    assert fused_s(rate, "forward", heads(4096, width=64), True) == pytest.approx(base / 2 / 0.5)
    assert fused_s(rate, "forward", heads(4096, width=256), True) == pytest.approx(base * 2 / 1.25)


def test_few_heads_leave_the_device_idle():
    h200 = rates("h200-141gb")
    one = attention_s(h200, "cudnn", "forward", (1, 1, 1, 8192, 8192, 128, 128))
    many = attention_s(h200, "cudnn", "forward", (1, 64, 64, 8192, 8192, 128, 128))
    assert many < 32 * one


def test_unknown_kernels_directions_and_collectives_are_named():
    h200 = rates("h200-141gb")
    with pytest.raises(
        ConfigError, match="attention kernel: got 'flsh', not known; nearest: flash"
    ):
        attention_s(h200, "flsh", "forward", heads(64))
    with pytest.raises(ConfigError, match="direction of attention"):
        attention_s(h200, "flash", "down", heads(64))
    with pytest.raises(ConfigError, match="collective: got 'all_gathr'"):
        collective_s(h200.links.link, "all_gathr", 1024, 8)


def test_decode_reads_the_cache_once_for_all_heads_of_a_key_head():
    rate = rates("h200-141gb").decode
    few, many = ((16, a, 8, 1, 32768, 128, 128) for a in (8, 16))
    cache = 16 * 2 * 8 * 32768 * 256
    seconds = decode_attention_s(rates("h200-141gb"), few)
    assert seconds >= rate.t0_s + cache / rate.bytes_per_s
    assert decode_attention_s(rates("h200-141gb"), many) < 1.1 * seconds
    halved = decode_attention_s(rates("h200-141gb"), few, cache_bytes=1)
    assert halved < 0.6 * seconds


def test_moved_bytes_and_launches_add_up():
    memory = rates("h200-141gb").memory
    seconds = moved_s(rates("h200-141gb"), 1 << 30, launches=3)
    assert seconds == pytest.approx(3 * memory.t0_s + (1 << 30) / memory.bytes_per_s)


@given(
    sent=st.integers(1, 1 << 34), kind=st.sampled_from(("all_gather", "all_reduce", "all_to_all")),
    ranks=st.integers(2, 72), name=st.sampled_from(("a100-80gb", "h100-80gb", "gb200-186gb", "l40s")),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_collectives_are_monotone_and_bounded_by_the_link(sent, kind, ranks, name):
    gpu = load_gpu(name)[0]
    link = rates(name).links.link
    seconds = collective_s(link, kind, sent, ranks)
    assert collective_s(link, kind, 2 * sent, ranks) >= seconds
    assert collective_s(rescaled(link, 2.0), kind, sent, ranks) <= seconds
    # a switch may sum for the ranks: an all-reduce then sends half of a ring's bytes
    wire = sent * (ranks - 1) / ranks
    assert seconds >= wire / gpu.link_unidirectional_bytes_per_s


def test_one_rank_exchanges_nothing():
    assert collective_s(rates("h100-80gb").links.link, "all_reduce", 1 << 30, 1) == 0


def test_curves_hold_between_and_beyond_the_ranks_measured():
    curves = (
        Curve(2, 4e-6, 10e9, 20e-6, 100e9), Curve(4, 6e-6, 20e9, 30e-6, 150e9),
        Curve(8, 10e-6, 30e9, 50e-6, 175e9),
    )  # fmt: skip
    assert [curve_of(curves, n) for n in (2, 4, 8)] == list(curves)
    three = curve_of(curves, 3)
    assert three.small_s == pytest.approx(5e-6)
    assert three.large_bytes_per_s == pytest.approx(
        100e9 + 50e9 * (1 / 2 - 1 / 3) / (1 / 2 - 1 / 4)
    )
    beyond = curve_of(curves, 16)
    assert beyond.small_s == pytest.approx(18e-6)
    assert beyond.large_bytes_per_s == 175e9


def test_a_call_takes_the_better_of_its_two_lines():
    curve = Curve(2, 5e-6, 50e9, 25e-6, 400e9)
    link = LinkRate(1e-6, 1e9, all_gather=(curve,))
    assert collective_s(link, "all_gather", 200e3, 2) == pytest.approx(5e-6 + 100e3 / 50e9)
    assert collective_s(link, "all_gather", 8e9, 2) == pytest.approx(25e-6 + 4e9 / 400e9)


def test_a_link_without_curves_has_one_line_and_sends_follow_it():
    link = LinkRate(10e-6, 50e9)
    assert collective_s(link, "all_reduce", 8e9, 4) == pytest.approx(10e-6 + 2 * 0.75 * 8e9 / 50e9)
    assert collective_s(link, "send", 5e9, 2) == pytest.approx(10e-6 + 0.1)


@given(shapes=st.lists(extent, min_size=1, max_size=8), name=st.sampled_from(GPUS))
@settings(max_examples=60, deadline=None)
def test_arrays_give_what_numbers_give(shapes, name):
    device = rates(name)
    b, m, n, k = (np.array(column) for column in zip(*shapes, strict=True))
    one_by_one = [gemm_s(device, "fp16", *shape) for shape in shapes]
    assert gemm_s(device, "fp16", b, m, n, k) == pytest.approx(one_by_one, rel=1e-12)
    grouped = [grouped_s(device, "fp16", *shape) for shape in shapes]
    assert grouped_s(device, "fp16", b, m, n, k) == pytest.approx(grouped, rel=1e-12)
    attention = [attention_s(device, "flash", "backward", (x, 8, 4, y, y, 80, 80))
                 for x, y, *_ in shapes]  # fmt: skip
    together = attention_s(device, "flash", "backward", (b, 8, 4, m, m, 80, 80))
    assert together == pytest.approx(attention, rel=1e-12)
    decoded = [decode_attention_s(device, (x, 8, 4, 1, y, 80, 80)) for x, y, *_ in shapes]
    together = decode_attention_s(device, (b, 8, 4, 1, m, 80, 80))
    assert together == pytest.approx(decoded, rel=1e-12)
    moved = [moved_s(device, m * n, b) for b, m, n, _ in shapes]
    assert moved_s(device, m * n, b) == pytest.approx(moved, rel=1e-12)
    link = rates("h200-141gb").links.link
    sent = [collective_s(link, "all_reduce", float(m) * n, 8) for _, m, n, _ in shapes]
    together = collective_s(link, "all_reduce", m.astype(float) * n, 8)
    assert together == pytest.approx(sent, rel=1e-12)


def test_arithmetic_takes_numbers_and_arrays():
    row = np.array([1.0, 4.0])
    assert maximum(2, 3) == 3
    assert minimum(2, 3) == 2
    assert maximum(row, 2).tolist() == [2.0, 4.0]
    assert minimum(2, row).tolist() == [1.0, 2.0]
    assert ceil_div(9, 4) == 3
    assert ceil_div(np.array([8, 9]), 4).tolist() == [2, 3]
    assert log2(row).tolist() == [0.0, 2.0]
    assert log2(8) == 3.0


def test_numbers_need_no_numpy():
    code = (
        "import sys; from memcalc.inputs.hardware import load_gpu; "
        "from memcalc.inputs.rates import rates_of; from memcalc.engine.timing import kernel_times as t; "
        "r = rates_of(load_gpu('h100-80gb')[0]); t.gemm_s(r, 'bf16', 1, 8, 8, 8); "
        "t.attention_s(r, 'flash', 'forward', (1, 8, 8, 64, 64, 64, 64)); t.moved_s(r, 8); "
        "t.grouped_s(r, 'bf16', 2, 8, 8, 8); t.collective_s(r.links.link, 'all_reduce', 8, 8); "
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("name", "slower"), [("a100-80gb", 312 / (156 / 3)), ("v100-32gb", 125 / 15.7)]
)
def test_attention_in_fp32_runs_as_products_of_fp32_do(name: str, slower: float) -> None:
    """Three products of tf32 each where a device has it, else its fp32 units; by the datasheets."""
    device, shape = rates(name), (4, 32, 32, 4096, 4096, 128, 128)
    narrow = attention_s(device, "efficient", "forward", shape)
    wide = attention_s(device, "efficient", "forward", shape, dtype="fp32")
    assert 0.85 * slower < wide / narrow < 1.15 * slower
    assert attention_s(device, "efficient", "forward", shape, dtype="fp16") == narrow

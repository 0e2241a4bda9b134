"""Models on the host, and divided between the host and a GPU: where bytes lie, and whose time it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memcalc.engine.device_side import device_of
from memcalc.engine.serving.infer import infer
from memcalc.errors import ConfigError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.serving import ServingSetup
from tests.unit.test_choose_rates import _CPU as CPU
from tests.unit.test_choose_rates import _write as write_calibration
from tests.unit.test_choose_rates import folder  # noqa: F401

GIB = 1 << 30
FIELDS = {"engine": "llama.cpp", "weights": "gguf:Q4_K_M", "context": 2048}


def answer(model: str = "llama-2-13b", gpu: str | None = "rtx-4090", **fields):  # type: ignore[no-untyped-def]
    return infer(model, ServingSetup(**{**FIELDS, **fields}), gpu=gpu)


def test_layers_on_gpu_and_host_hold_the_model_between_them() -> None:
    whole = answer()
    for layers in (0, 1, 20, 40):
        found = answer(gpu_layers=layers)
        assert found.weights_bytes == whole.weights_bytes
        assert found.kv_cache_bytes == whole.kv_cache_bytes
        assert found.kv_bytes_per_token == whole.kv_bytes_per_token == 40 * 2 * 5120 * 2
        on_gpu = found.memory.weights_bytes + found.memory.kv_cache_bytes
        buffers = found.host_bytes - (found.weights_bytes + found.kv_cache_bytes - on_gpu)
        assert 0 <= buffers < 0.5 * GIB
        assert found.memory.kv_cache_bytes == whole.kv_cache_bytes * layers // 40


def test_the_table_of_tokens_is_the_hosts() -> None:
    """Llama-2-13B: 32000 rows of 5120 in Q4_K, 144 bytes for 256."""
    found = answer()
    table = 32000 * 5120 * 144 // 256
    assert found.weights_bytes - found.memory.weights_bytes == table


def test_a_tied_table_is_there_twice() -> None:
    found = answer("qwen2.5-0.5b", weights="bf16")
    table = 151936 * 896 * 2
    assert found.weights_bytes - found.memory.weights_bytes == table
    assert found.weights_bytes == 2 * 494_032_768 + table


def test_a_steps_time_is_the_sum_of_both() -> None:
    """Read at 20 GB/s on the host and 1 TB/s on the card, layers of one size: linear in their number."""
    times = {
        n: answer(
            gpu_layers=n, host_bytes_per_s=20e9, weights="gguf:Q4_0"
        ).time.time_per_output_token_s
        for n in (0, 10, 20, 40)
    }
    assert times[0] > times[10] > times[20] > times[40]
    slope = times[0] - times[10]
    assert times[10] - times[20] == pytest.approx(slope, rel=0.02)
    assert times[20] - times[40] == pytest.approx(2 * slope, rel=0.02)


def test_a_long_prompt_over_the_hosts_layers_runs_on_the_gpu() -> None:
    """Weights are copied for every piece of 512 positions rather than multiplied on the host."""
    long = answer(gpu_layers=20, context=2048, prompt=512)
    host = infer("llama-2-13b", ServingSetup(**{**FIELDS, "device": "cpu", "prompt": 512}))
    assert long.time.prefill_s < 0.3 * host.time.prefill_s
    assert long.time.prefill_s > answer(prompt=512).time.prefill_s


def test_auto_takes_as_many_layers_as_fit() -> None:
    found = answer("llama-2-70b", gpu_layers="auto")
    taken = found.setup["gpu_layers"]
    assert found.fits and 0 < taken < 80
    assert not answer("llama-2-70b", gpu_layers=taken + 1).fits
    assert answer("llama-2-7b", gpu_layers="auto").setup["gpu_layers"] == 32


def test_the_host_can_be_too_small() -> None:
    found = answer("llama-2-70b", gpu_layers=10, host_memory_bytes=16 * GIB)
    assert found.fits is False and any("host memory: needs" in note for note in found.notes)
    assert answer("llama-2-70b", gpu_layers=10, host_memory_bytes=64 * GIB).fits


def test_a_cpu_alone_has_its_memory_and_bandwidth() -> None:
    slow, fast = (
        answer(
            "llama-2-7b", gpu=None, device="cpu", host_bytes_per_s=rate, host_memory_bytes=8 * GIB
        )
        for rate in (50e9, 100e9)
    )
    assert slow.fits and slow.memory.usable_bytes == 8 * GIB
    assert slow.time.time_per_output_token_s > slow.time.lower_bound_s
    ratio = slow.time.decode_tokens_per_s / fast.time.decode_tokens_per_s
    assert 0.5 <= ratio < 0.75
    unknown = answer("llama-2-7b", gpu=None, device="cpu")
    assert unknown.fits is None and unknown.time.tokens_per_s > 0
    assert any("51.2 GB/s" in line for line in unknown.assumptions)


def test_a_cpus_own_calibration_says_its_bandwidth(folder) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    """Copies at 20 GB/s bound a token of 4 GB of weights; its kernels are those of the made-up file."""
    path = write_calibration(folder, "mine", "Some CPU", **CPU)
    device = device_of(None, calibration=str(path))
    setup = ServingSetup(**{**FIELDS, "device": "cpu"})
    found = infer("llama-2-7b", setup, gpu=device)
    assert found.time.calibration == "mine"
    assert 0.19 < found.time.lower_bound_s < (found.weights_bytes + found.kv_cache_bytes) / 20e9
    assert any("Some CPU, as calibration mine measured it" in line for line in found.assumptions)
    with pytest.raises(ConfigError, match="host_bandwidth: got 50 GB/s with calibration"):
        infer("llama-2-7b", replace(setup, host_bytes_per_s=50e9), gpu=device)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="device: got cpu with gpu h100"):
        answer(gpu="h100", device="cpu")
    with pytest.raises(ConfigError, match="gpus: got 2 with device cpu"):
        setup = ServingSetup(**{**FIELDS, "device": "cpu"})
        infer("llama-2-7b", setup, parallel=ParallelPlan(pp=2))
    with pytest.raises(ConfigError, match="host_bandwidth: got"):
        answer(gpu=None, device="cpu", host_bytes_per_s=1e20)


def test_transformers_serves_on_a_cpu() -> None:
    found = infer("gpt2", ServingSetup(device="cpu", weights="fp32", host_memory_bytes=GIB))
    assert found.fits and found.memory.context_bytes == 0
    assert found.memory.breakdown["workspace"] == 0

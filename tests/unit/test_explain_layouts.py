"""explain under a layout: a rank's ledger, what it holds of each part, closed forms of tensor layouts."""

from __future__ import annotations

import pytest

from memcalc import ConfigError, ParallelPlan, TrainingSetup, estimate, explain

LAYOUTS = {
    "one GPU": ("torch", ParallelPlan()),
    "fsdp": ("torch", ParallelPlan(gpus=8, fsdp=True)),
    "tp": ("torch", ParallelPlan(tp=4, sp=True)),
    "fsdp and tp": ("torch", ParallelPlan(gpus=8, tp=2, sp=True, fsdp=True)),
    "ddp": ("torch", ParallelPlan(gpus=4)),
    "zero 1": ("torch", ParallelPlan(gpus=4, zero=1)),
    "megatron": ("megatron", ParallelPlan(gpus=8, tp=2, zero=1)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_a_rank_holds_is_the_estimates_states(name: str) -> None:
    stack, layout = LAYOUTS[name]
    setup = TrainingSetup(seq_len=64, stack=stack)
    found = explain("llama-3.2-3b", setup, parallel=layout)
    states = estimate("llama-3.2-3b", setup, parallel=layout, allocator=False).memory.states
    total = found.holdings[-1]
    assert total.parameter_bytes == states["parameters"]
    assert total.gradient_bytes == states["gradients"]
    assert found.states["optimizer states"] == states["optimizer"]
    assert found.states["master copies"] == states["master"]


@pytest.mark.parametrize("name", ["one GPU", "tp"])
def test_the_ledgers_saved_bytes_are_the_estimates(name: str) -> None:
    stack, layout = LAYOUTS[name]
    setup = TrainingSetup(seq_len=64, stack=stack)
    saved = next(t for t in explain("gpt2-xl" if name == "one GPU" else "llama-3.2-3b", setup,
                                    parallel=layout).totals if t.unit == "bytes")  # fmt: skip
    model = "gpt2-xl" if name == "one GPU" else "llama-3.2-3b"
    memory = estimate(model, setup, parallel=layout, allocator=False).memory
    assert saved.name == "saved for backward" and saved.value == memory.saved_for_backward_bytes


def test_experts_are_divided_and_the_rest_is_not() -> None:
    """Mixtral-8x7B: 45.1 B of 46.7 B elements are experts; over eight ranks each has an eighth."""
    found = explain("mixtral-8x7b", TrainingSetup(stack="megatron", seq_len=64),
                    parallel=ParallelPlan(gpus=8, ep=8))  # fmt: skip
    parts = {one.part: one for one in found.holdings}
    assert parts["experts"].model_elements == 32 * 8 * 3 * 4096 * 14336
    assert 8 * parts["experts"].rank_elements == parts["experts"].model_elements
    assert parts["attention"].rank_elements == parts["attention"].model_elements


def test_the_whole_model_and_a_ranks_part_of_it() -> None:
    found = explain("llama-3.1-8b", TrainingSetup(seq_len=64), parallel=ParallelPlan(tp=8))
    total = found.holdings[-1]
    assert total.model_elements == 8_030_261_248
    norms = (2 * 32 + 1) * 4096
    assert 8 * (total.rank_elements - norms) == total.model_elements - norms


def test_tensor_layouts_side_by_side() -> None:
    """D12: every layout 8 GPUs allow, per GPU; in 2.5D matrices are whole on each layer of the cube."""
    found = explain("llama-3.1-8b", TrainingSetup(seq_len=64, micro_batch_size=4),
                    parallel=ParallelPlan(tp=8, tp_layout="3d"))  # fmt: skip
    rows = {one.layout: one for one in found.layouts}
    assert {"1d", "2.5d, depth 2", "3d"} <= set(rows)
    assert rows["3d"].parameters < rows["2.5d, depth 2"].parameters
    assert rows["3d"].saved_per_layer_bytes < rows["1d"].saved_per_layer_bytes
    assert "micro-batch" in rows["2.5d, depth 8"].reason


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (ParallelPlan(tp=8, tp_layout="2d"), "q^2"),
        (ParallelPlan(tp=8, tp_layout="3d"), "nearest valid: 4"),
    ],
)
def test_a_layout_that_does_not_go_is_refused(layout: ParallelPlan, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        explain("llama-3.1-8b", TrainingSetup(seq_len=64), parallel=layout)
    assert said in str(refused.value)


def test_estimate_refuses_what_has_no_timeline() -> None:
    with pytest.raises(ConfigError, match="memcalc explain"):
        estimate("llama-3.1-8b", parallel=ParallelPlan(tp=4, tp_layout="2d"))

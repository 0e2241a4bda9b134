"""The list of kernels: FLOPs add up, shapes and bytes are those worked out by hand."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from itertools import product

import pytest

from memcalc.engine.explain import explain_plan
from memcalc.engine.flops import executed_flops
from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.engine.works import Counted, Work, works_of
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.training import TrainingSetup

#: Stack and precision.
STACKS = (
    ("torch", "bf16"), ("torch", "fp8-mixed"), ("torch-compile", "bf16-mixed"), ("hf", "bf16"),
    ("megatron", "bf16-mixed"), ("nanotron", "bf16-mixed"), ("torchtitan", "bf16-mixed"),
)  # fmt: skip
MODELS = ("llama-3.2-1b", "gpt2", "mixtral-8x7b", "deepseek-v2-lite")
RECOMPUTES = ("none", "selective", "sac", "full")
SIZES = {"seq_len": 512, "micro_batch_size": 2}


def plan(model: str, parallel: ParallelPlan | None = None, **setup: object) -> Plan:
    return plan_of(load_model(model), TrainingSetup(**{**SIZES, **setup}), None, parallel)


def llama(**setup: object) -> Plan:
    return plan("llama-3.1-8b", **{"precision": "bf16", "micro_batch_size": 1, **setup})


def flops_by_kind(rows: tuple[Counted, ...], values: dict[str, int]) -> dict[str, int]:
    """Attention's backward counts as dgrad; what runs again as recompute."""
    total = dict.fromkeys(("forward", "dgrad", "wgrad", "recompute"), 0)
    for work, times in rows:
        part = work.part or ("dgrad" if work.direction == "backward" else "forward")
        kind = "recompute" if work.direction == "recompute" and part == "forward" else part
        total[kind] += times * work.flops.value(values)
    return total


def _check_flops(checked: Plan) -> None:
    structure, runs = checked.structure(checked.keeps_gradients)
    wanted = executed_flops(structure, runs, checked.values)
    assert flops_by_kind(works_of(checked), checked.values) == wanted


def accepted() -> list[dict[str, str]]:
    """The combinations that are no user's error."""
    found = []
    for model, (stack, precision), recompute in product(MODELS, STACKS, RECOMPUTES):
        asked = {"stack": stack, "precision": precision, "recompute": recompute}
        with suppress(ConfigError):
            plan(model, **asked)
            found.append({"model": model, **asked})
    return found


@pytest.mark.parametrize("asked", accepted(), ids=lambda asked: "-".join(asked.values()))
def test_flops_of_all_kernels_are_the_executed_ones(asked: dict[str, str]) -> None:
    _check_flops(plan(**asked))


def test_most_combinations_are_checked() -> None:
    assert len(accepted()) > 60


@pytest.mark.parametrize(
    ("stack", "layout"),
    [
        ("torch", {"tp": 2}), ("torch", {"cp": 2}), ("torch", {"cp": 2, "cp_method": "ulysses"}),
        ("megatron", {"tp": 2}), ("megatron", {"tp": 2, "sp": True}), ("megatron", {"cp": 2}),
        ("nanotron", {"tp": 2}), ("torch", {"dp": 2, "fsdp": True}),
    ],
)  # fmt: skip
def test_flops_add_up_on_a_rank(stack: str, layout: dict[str, object]) -> None:
    parallel = ParallelPlan(**layout)
    _check_flops(plan("llama-3.2-1b", parallel, stack=stack, precision="bf16-mixed"))


def moved_by_op(checked: Plan, direction: str, per: int) -> dict[str, float]:
    """Bytes of a block's element-wise kernels by op, in units of `per` bytes, of one layer."""
    total: Counter[str] = Counter()
    for work, times in works_of(checked):
        if work.block == 0 and work.kind == "moved" and work.direction == direction:
            total[work.op] += times * work.moved.value(checked.values)
    return {op: size / checked.config.num_hidden_layers / per for op, size in total.items()}


def test_traffic_of_an_eager_llama_block_is_what_its_kernels_must_move() -> None:
    """In bytes times h a token: Llama-8B has f = 3.5 h and keys of h/4; tables and weights are small.

    Norm: x in, result out. Rope of q: x cos and its halves' neg, cat, times sin, and the sum; of k a
    quarter. SwiGLU: silu (2 f), product (3 f). Backward: two products, silu's; a norm reads x and the
    gradient for x's gradient and again for the weight's; sums of gradients are three tensors each.
    """
    checked = llama(seq_len=8192)
    forward = moved_by_op(checked, "forward", 8192 * 4096)
    assert forward["attn_norm"] == pytest.approx(4, rel=1e-3)
    assert forward["rope"] == pytest.approx((4 + 2 + 4 + 4 + 6) * 1.25, rel=0.02)
    assert forward["attn_residual"] == forward["mlp_residual"] == 6
    assert (forward["activation"], forward["gate_mul"]) == (4 * 3.5, 6 * 3.5)
    backward = moved_by_op(checked, "backward", 8192 * 4096)
    assert backward["gate_mul"] == 2 * 6 * 3.5
    assert backward["activation"] == 6 * 3.5
    assert backward["mlp_norm"] == pytest.approx(6 + 4 + 6, rel=1e-3)
    assert backward["gate_proj"] == 6  # both branches' gradients of the normed stream
    assert "attn_residual" not in backward


def launches(checked: Plan, direction: str) -> float:
    rows = ((w, n) for w, n in works_of(checked) if w.block == 0 and w.direction == direction)
    return sum(n * w.launches for w, n in rows) / checked.config.num_hidden_layers


def test_kernels_of_a_block_by_body_of_code() -> None:
    """Seven products, attention, and what each code does element by element; see docs of each op."""
    eager = llama()
    assert (launches(eager, "forward"), launches(eager, "backward")) == (24, 41)
    written_out = llama(stack="hf")  # RMSNorm as eight operators, each with a gradient of its own
    assert (launches(written_out, "forward"), launches(written_out, "backward")) == (38, 77)
    compiled = llama(stack="torch-compile")
    assert (launches(compiled, "forward"), launches(compiled, "backward")) == (14, 25)
    megatron = llama(stack="megatron", precision="bf16-mixed")
    assert (launches(megatron, "forward"), launches(megatron, "backward")) == (14, 23)


def one(checked: Plan, op: str, part: str, direction: str = "backward") -> tuple[Work, list[int]]:
    """The only row of a product, and its shape in numbers."""
    rows = [w for w, _ in works_of(checked) if (w.op, w.part, w.direction) == (op, part, direction)]
    assert len(rows) == 1
    return rows[0], [size.value(checked.values) for size in rows[0].shape]


def test_a_product_has_the_shape_of_the_multiplication_that_runs() -> None:
    """(batch, m, n, k): forward tokens x out x in, dgrad tokens x in x out, wgrad out x in x tokens."""
    checked = llama(seq_len=1024)
    tokens, h, f = 1024, 4096, 14336
    work, shape = one(checked, "up_proj", "forward", "forward")
    assert shape == [1, tokens, f, h]
    assert work.moved.value(checked.values) == 2 * (tokens * h + f * h + tokens * f)
    assert one(checked, "up_proj", "dgrad")[1] == [1, tokens, h, f]
    assert one(checked, "up_proj", "wgrad")[1] == [1, f, h, tokens]
    assert work.dtype == "bf16"


def test_a_weight_gradient_added_in_place_reads_and_writes_the_fp32_buffer() -> None:
    checked = llama(stack="megatron", precision="bf16-mixed", seq_len=1024)
    work, (_, m, n, k) = one(checked, "down_proj", "wgrad")
    assert work.moved.value(checked.values) == 2 * (m + n) * k + 2 * 4 * m * n


def test_experts_are_grouped_with_every_row_that_goes_to_one() -> None:
    checked = plan("mixtral-8x7b", precision="bf16")
    rows, h, m = 2 * 512 * 2, 4096, 14336
    assert one(checked, "expert_down", "forward", "forward")[1] == [8, rows, h, m]
    assert one(checked, "expert_down", "dgrad")[1] == [8, rows, m, h]
    work, shape = one(checked, "expert_down", "wgrad")
    assert (work.kind, shape) == ("grouped", [8, rows, h, m])


@pytest.mark.parametrize("stack", ["torch", "megatron"])
def test_each_step_of_a_ring_is_a_kernel(stack: str) -> None:
    """Four ranks: four steps over the rank's own 128 positions, each counted as one full square."""
    checked = plan("llama-3.2-1b", ParallelPlan(cp=4), stack=stack, precision="bf16-mixed")
    for direction in ("forward", "backward"):
        (row,) = (
            x
            for x in works_of(checked)
            if (x.work.kind, x.work.direction) == ("attention", direction)
        )
        assert row.times == 4 * 16
        assert [size.value(checked.values) for size in row.work.shape] == [
            2,
            32,
            8,
            128,
            128,
            64,
            64,
        ]


def test_what_is_recomputed_is_forward_again_without_its_last_product() -> None:
    checked = llama(recompute="full")
    again, first = (
        Counter({(w.op, w.kind, w.name, w.shape): n for w, n in works_of(checked)
                 if w.direction == direction and w.block == 0})
        for direction in ("recompute", "forward")
    )  # fmt: skip
    missing = {op for op, *_ in first - again}
    assert again <= first
    assert missing == {"down_proj", "mlp_residual"}


def test_sharding_leaves_the_list_as_it_is() -> None:
    alone = plan("llama-3.2-1b", precision="bf16")
    shared = plan("llama-3.2-1b", ParallelPlan(dp=4, fsdp=True), precision="bf16")
    assert works_of(shared) == works_of(alone)


def test_a_second_micro_batch_adds_every_gradient_to_the_first() -> None:
    """Two tensors read, one written; weights under autocast in fp32, the tied embedding once."""
    checked = plan("llama-3.2-1b", grad_accum_steps=2)
    alone = plan("llama-3.2-1b", grad_accum_steps=1)
    values, parameters = checked.values, 1_235_814_400

    def moved(rows: tuple[Counted, ...]) -> int:
        return sum(n * w.moved.value(values) for w, n in rows if w.kind == "moved")

    assert moved(works_of(checked)) - moved(works_of(alone)) == 3 * 4 * parameters


def test_operands_of_fp8_and_tf32_products_say_so() -> None:
    def dtypes(precision: str) -> Counter[str]:
        rows = works_of(plan("llama-3.2-1b", precision=precision))
        return Counter(w.dtype for w, _ in rows if w.kind == "gemm" and w.block == 0)

    assert set(dtypes("fp8-mixed")) == {"fp8"}
    assert set(dtypes("tf32")) == {"tf32"}
    assert set(dtypes("fp32")) == {"fp32"}
    assert set(dtypes("bf16-mixed")) == {"bf16"}


def test_rows_are_merged_over_layers_and_made_once() -> None:
    deep, shallow = llama(), llama(num_layers=8)
    assert works_of(deep) is works_of(llama())
    assert [w for w, _ in works_of(deep)] == [w for w, _ in works_of(shallow)]
    assert sum(n for w, n in works_of(deep) if w.block == 0) == 4 * sum(
        n for w, n in works_of(shallow) if w.block == 0
    )
    assert len(works_of(deep)) < 100


@pytest.mark.parametrize("stack", ["torch", "torch-compile"])
def test_the_ledger_prints_the_same_bytes(stack: str) -> None:
    checked = llama(stack=stack)
    totals = {total.name: total.value for total in explain_plan(checked).totals}
    for direction in ("forward", "backward"):
        rows = ((w, n) for w, n in works_of(checked) if w.direction == direction)
        moved = sum(n * w.moved.value(checked.values) for w, n in rows)
        assert totals[f"{direction} traffic"] == moved

"""What nanotron's autograd functions allocate, keep and free, by hand."""

from __future__ import annotations

from memcalc.engine.aten.nanotron_ops import (
    Divided,
    flash_varlen,
    linear,
    rotated_in_place,
    sharded_cross_entropy,
    unbind,
)
from memcalc.engine.aten.shape import permute
from memcalc.engine.autograd import backward
from memcalc.engine.sizes import dim, number
from memcalc.engine.tensors import Tape, Tensor

VALUES = {"s": 64, "b": 2, "h": 16, "o": 8, "V": 32, "a": 4, "d": 8, "s_t": 16}
s, b, h, o, V, a, d, s_t = (dim(name) for name in VALUES)


def given(tape: Tape, *shape, dtype: str = "bf16") -> Tensor:
    made = tape.external(shape, dtype)
    made.requires_grad = True
    return made


def made(tape: Tape) -> list[tuple[str, int]]:
    return [(name, size.value(VALUES)) for name, size in zip(tape.names, tape.sizes, strict=True)]


def run_back(tape: Tape, out: Tensor) -> list[tuple[str, int]]:
    before = len(tape.names)
    backward(out, tape.external(out.shape, out.dtype))
    return made(tape)[before:]


def test_a_row_linear_copies_a_view_each_way_and_keeps_the_view():
    tape = Tape()
    x = permute(given(tape, b, s, h), (1, 0, 2))
    out = linear(x, given(tape, o, h))
    assert made(tape) == [("clone", 2 * 64 * 2 * 16), ("gemm", 2 * 64 * 2 * 8)]
    assert out.node is not None and out.node.saved[0][1].storage is x.storage
    assert run_back(tape, out)[:3] == [
        ("matmul", 2 * 64 * 2 * 16), ("clone", 2 * 64 * 2 * 16), ("matmul", 2 * 8 * 16),
    ]  # fmt: skip


def test_a_gathering_linear_keeps_its_rows_and_scatters_the_gradient():
    tape = Tape()
    out = linear(given(tape, s_t, b, h), given(tape, o, h), Divided(gathers=True, rows=(s, b)))
    assert made(tape) == [("gemm", 2 * 64 * 2 * 8)]
    assert run_back(tape, out) == [
        ("matmul", 2 * 64 * 2 * 16), ("reduce_scatter", 2 * 16 * 2 * 16), ("matmul", 2 * 8 * 16),
    ]  # fmt: skip


def test_entries_of_one_tensor_are_views_and_their_gradients_one_stack():
    tape = Tape()
    parts = unbind(given(tape, number(3), s, h))
    assert len(parts) == 3 and made(tape) == []
    rotated = rotated_in_place(parts[0])
    assert rotated.storage is parts[0].storage
    assert run_back(tape, rotated) == [("stack", 2 * 3 * 64 * 16)]


def test_attention_sums_dq_in_fp32_with_rows_to_spare():
    tape = Tape()
    q, k, v = (given(tape, b * s, a, d) for _ in range(3))
    out = flash_varlen(q, k, v, (b, s))
    tokens = 64 * 2
    kept = [("cu_seqlens", 12)] * 2 + [
        ("varlen_fwd", 2 * tokens * 4 * 8), ("varlen_fwd", 4 * tokens * 4), ("varlen_fwd", 16),
    ]  # fmt: skip
    assert made(tape) == kept
    rows = tokens + 128 * 2
    assert run_back(tape, out) == [("varlen_bwd", 2 * tokens * 4 * 8)] * 3 + [
        ("softmax_d", 4 * rows * 4), ("dq_accum", 4 * rows * 4 * 8),
    ]  # fmt: skip


def test_the_loss_makes_one_fp32_tensor_of_the_logits_and_its_gradient_in_it():
    tape = Tape()
    losses = sharded_cross_entropy(given(tape, s, b, V, dtype="fp32"))
    whole = 4 * 64 * 2 * 32
    assert [size for _, size in made(tape)].count(whole) == 1
    assert all(size < whole for _, size in run_back(tape, losses))

"""Kernels of stack megatron one by one: bytes kept, and the most alive in forward and in backward.

What is expected is written from Transformer Engine's and Megatron's functions: their variables, and
when they let go of them. Dense layers are held against real torch functions in oracle/.
"""

from __future__ import annotations

from collections.abc import Callable

from memcalc.engine.aten.collective import all_gather, all_to_all, reduce_scatter
from memcalc.engine.aten.te_attention import attention
from memcalc.engine.aten.te_linear import How, grouped_linear, linear
from memcalc.engine.aten.te_tokens import (
    beyond_capacity,
    fused_activation,
    gate,
    laid_anew,
    permute,
    sort_chunks,
    unpermute,
)
from memcalc.engine.autograd import backward
from memcalc.engine.sizes import ONE, dim
from memcalc.engine.tensors import Tape, Tensor

VALUES = {
    "T": 8,
    "h": 64,
    "E": 16,
    "R": 32,
    "m": 48,
    "s": 128,
    "a": 4,
    "k": 2,
    "d": 32,
    "o": 96,
    "C": 4,
}
T, h, E, R, m, s, a, k, d, o, C = (dim(name) for name in VALUES)
Made = Callable[[Tape], Tensor]


def of(tape: Tape, *shape: object, dtype: str = "bf16", trains: bool = True) -> Tensor:
    made = tape.external(tuple(shape), dtype)
    made.requires_grad = trains
    return made


def cost(make: Made) -> tuple[int, int, int]:
    """(bytes kept beside the result, most alive in forward, most alive in backward over the kept)."""
    tape = Tape()
    out = make(tape)
    forward = len(tape.events)
    size = tape.sizes[out.storage.index].value(VALUES) if out.storage.index >= 0 else 0
    backward(out, tape.external(out.shape, out.dtype))
    live = [0]
    for event in tape.events:
        change = tape.sizes[event if event >= 0 else ~event].value(VALUES)
        live.append(live[-1] + (change if event >= 0 else -change))
    kept = live[forward]
    return kept - size, max(live[: forward + 1]), max(live[forward:]) - kept


def b(expression: str) -> int:
    return int(eval(expression, {}, VALUES))  # a formula in the letters above


def test_collectives_make_their_result_each_way():
    assert cost(lambda t: all_gather(of(t, T, h), (R, h))) == (0, b("2*R*h"), b("2*T*h"))
    assert cost(lambda t: reduce_scatter(of(t, R, h), (T, h))) == (0, b("2*T*h"), b("2*R*h"))
    assert cost(lambda t: all_to_all(of(t, T, h), (R, h))) == (0, b("2*R*h"), b("2*T*h"))


def test_a_linear_with_sequence_parallelism_holds_gathered_rows_while_it_works():
    """Backward: rows gathered again beside the gradient of all of them, then a rank's part."""
    how = How(gathers=True, rows=(s, ONE))
    found = cost(lambda t: linear(of(t, T, ONE, h), (of(t, o, h),), how))
    assert found == (0, b("2*s*h + 2*s*o"), b("2*s*h + 2*s*h + 2*T*h"))


def test_a_linear_without_fused_accumulation_makes_its_weights_gradient():
    how = How(adds_in_place=False)
    found = cost(lambda t: linear(of(t, T, ONE, h), (of(t, o, h),), how))
    assert found == (0, b("2*T*o"), b("2*T*h + 2*o*h"))


def test_grouped_products_write_their_gradients_in_place():
    found = cost(lambda t: grouped_linear(of(t, R, h), of(t, E, o, h)))
    assert found == (0, b("2*R*o"), b("2*R*h"))


def test_a_routers_product_in_fp32_copies_its_operands_in_backward():
    """Gradients of both in fp32, a copy of the tokens in fp32 beside; then each is cast."""
    found = cost(lambda t: gate(of(t, T, h), of(t, E, h), "fp32"))
    assert found == (0, b("4*T*E"), b("4*T*h + 4*T*h + 4*E*h"))
    assert cost(lambda t: gate(of(t, T, h), of(t, E, h))) == (0, b("2*T*E"), b("2*T*h + 2*E*h"))


def test_permutation_keeps_a_map_of_two_int32_an_expert_and_one():
    """Rows, probabilities and the map; backward makes tokens and (T, E), beside zeros for the map."""
    made = cost(lambda t: permute(of(t, T, h), of(t, T, E), R)[0])
    places = b("4*T*(2*E+1)")
    assert made == (places, places + b("2*R*h + 2*R"), places + b("2*T*h + 2*T*E"))
    tokens = cost(lambda t: unpermute(of(t, R, h), of(t, T, E, dtype="int32", trains=False), T))
    assert tokens == (0, b("2*T*h"), b("2*R*h"))


def test_sorting_keeps_an_int32_a_row_and_chunks_of_one_length_nothing():
    found = cost(lambda t: sort_chunks(of(t, R, h))[0])
    assert found == (b("4*R"), b("4*R + 2*R*h"), b("2*R*h"))
    assert cost(lambda t: laid_anew(of(t, R, h))) == (0, b("2*R*h"), b("2*R*h"))


def test_an_activation_weighed_by_probabilities_keeps_both():
    """They were there before: nothing is kept beside; backward makes a gradient of each."""
    found = cost(lambda t: fused_activation(of(t, R, m * 2), of(t, R, ONE), gated=True))
    assert found == (0, b("2*R*m"), b("4*R*m + 2*R"))


def test_dropping_beyond_a_capacity_keeps_the_map():
    """Scores, places and marks live until the map is there; kept is one byte an entry."""
    chosen = (T, E)
    found = cost(lambda t: beyond_capacity(of(t, T, E), of(t, *chosen, dtype="bool"), C, False)[0])
    marks = b("10*C*E") + b("T*E") + b("T*E") + b("2*T*E")
    assert found == (b("T*E"), max(marks, b("10*C*E + 4*T*E")), b("2*T*E"))


def test_attention_alone_keeps_log_sum_exp_and_a_state_beside_its_operands():
    """Backward: gradients of q, k and v, each its own."""
    one = cost(lambda t: attention(*heads(t), ("none", 1)))
    assert one == (b("4*a*s + 16"), b("2*s*a*d + 4*a*s + 16"), b("2*s*a*d + 4*s*k*d"))


def test_a_ring_holds_all_keys_values_and_steps_until_its_end():
    """4 ranks: own and 3 others' k and v, 4 outputs, log-sum-exps and states; kept are the last's."""
    kv, out, lse = b("4*s*k*d"), b("2*s*a*d"), b("4*a*s")
    kept, forward, _ = cost(lambda t: attention(*heads(t), ("ring", 4)))
    assert kept == kv + lse + 4 * 16
    assert forward == 4 * kv + 4 * (out + lse + 16) + lse + out


def test_all_to_all_attention_keeps_operands_and_output_by_heads():
    kept, _, _ = cost(lambda t: attention(*heads(t), ("ulysses", 4)))
    assert kept == b("2*s*a*d + 4*s*k*d + 2*s*a*d + 4*a*s + 16")


def heads(tape: Tape) -> tuple[Tensor, Tensor, Tensor]:
    return of(tape, s, ONE, a, d), of(tape, s, ONE, k, d), of(tape, s, ONE, k, d)

"""Products with a frozen matrix that is stored quantised, as bitsandbytes 0.50.2 runs them on CUDA.

Symbols: x (T, i) the rows, the matrix (o, i), stored in 4 or 8 bits beside its scales; what is stored
existed before the step. In 4 bits the whole matrix is written out in 16 bits before the product,
forward and backward, and nothing of the input is kept. In 8 bits (LLM.int8) the input is quantised row
by row, the product is made in int32, and the input is kept, though the matrix takes no gradient.
Of LLM.int8 what its outlier columns take is left out: which columns are is the data's.
Source: bitsandbytes, autograd/_functions.py (MatMul4Bit, MatMul8bitLt), backends/cuda/ops.py
(_dequant_linear_fallback, int8_vectorwise_quant, int8_mm_dequant), backends/default/ops.py.
Checked by: oracle/test_bitsandbytes_products.py.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from memcalc.engine.aten.matmul import dispatched
from memcalc.engine.aten.shape import flatten_tokens, reshape
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.kernel_log import gemm, gemm_shape
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import Shape, Tensor

#: Elements that share a scale, and scales that share one of the second level.
_BLOCK: Final = 64
#: Rows up to which a kernel unpacks as it reads: 64 on H100, 128 on A100, 256 on consumer cards for
#: the matrices of large models (backends/cuda/ops.py, _gemm_4bit_use_custom_cuda); above it the
#: matrix is written out. With fewer rows this is an upper bound on the cards that go further.
FUSED_ROWS: Final = 64


class Quantised(NamedTuple):
    """How a linear's matrix is stored. bits: 4 or 8. nested: its scales are quantised too.

    writes_out: with this many rows the matrix is written out before the product (4 bits). dtype: the
    one it was loaded in, which backward writes it out in.
    """

    bits: int
    nested: bool = True
    writes_out: bool = True
    dtype: str = "bf16"


def writes_out(rows: int) -> bool:
    """Whether a 4-bit product of so many rows writes the matrix out first."""
    return rows > FUSED_ROWS


def quantised_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, quantised: Quantised
) -> Tensor:
    """A linear (..., i) -> (..., o) with a frozen matrix; weight is the ledger's leaf of (o, i)."""
    forward = _forward_4bit if quantised.bits == 4 else _forward_8bit
    rows = flatten_tokens(x)
    inputs = (rows,) if bias is None else (rows, bias)
    node = node_for(_backward, *inputs)
    if node:
        node.meta = (quantised, weight.shape, _kept(rows, quantised))
    record = x.tape.record
    if record is not None:
        record.input_shape = x.shape
        record.output_shape = (*x.shape[:-1], weight.shape[0])
        record.gemms.append((rows.shape[0], weight.shape[0], rows.shape[1]))
    out = forward(rows, weight, bias, quantised)
    if node:
        out = node.output(out)
    return reshape(out, (*x.shape[:-1], weight.shape[0]))


def _kept(rows: Tensor, quantised: Quantised) -> Tensor | None:
    """What a product keeps as an attribute of its node, for as long as the graph is there.

    LLM.int8 keeps its input so, whatever needs it: running the node does not free it, and
    checkpointing without reentrant, which sees only what autograd saves, does not either.
    """
    if quantised.bits == 4 or not rows.requires_grad:
        return None
    record = rows.tape.record
    if record is not None:
        record.note_saved(rows, "wgrad")
    return rows


def _forward_4bit(
    rows: Tensor, weight: Tensor, bias: Tensor | None, quantised: Quantised
) -> Tensor:
    tape, (o, i) = rows.tape, weight.shape
    shape = gemm_shape(rows.shape[0], o, i)
    product = gemm("mm" if bias is None else "addmm", "forward", shape, rows.dtype)
    packed = _packed_bytes(weight.shape)
    if not quantised.writes_out:
        moved = product.moved + packed + -(o * i * ITEMSIZE[rows.dtype])
        tape.ran(product._replace(moved=moved))
        return tape.empty(product.name, (rows.shape[0], o), rows.dtype)
    scales = _scales(rows, weight.shape, both=True) if quantised.nested else []
    tape.loads_bytes(packed)
    matrix = tape.empty("dequantize_4bit", weight.shape, rows.dtype)
    (out,) = dispatched(tape, product, [((rows.shape[0], o), rows.dtype)])
    while scales:
        scales.pop()
    del matrix
    return out


def _scales(like: Tensor, shape: Shape, both: bool) -> list[Tensor]:
    """The fp32 scales of a matrix whose scales are quantised; both: a sum is made beside them."""
    tape, count = like.tape, (shape[0] * shape[1]).over(_BLOCK)
    tape.loads_bytes(count)
    scales = [tape.empty("dequantize_blockwise", (count,), "fp32")]
    if both:
        tape.loads(scales[0])
        scales.append(tape.empty("add.Tensor", (count,), "fp32"))
    else:
        tape.in_place("add_", scales[0])
    return scales


def _forward_8bit(
    rows: Tensor, weight: Tensor, bias: Tensor | None, quantised: Quantised
) -> Tensor:
    """LLM.int8 where no input is an outlier: which columns are is the data's.

    The input in fp16, a mask of outliers, int8 codes and a scale a row; the product in int32, then
    fp16, then the input's dtype.
    """
    tape, (tokens, i), o = rows.tape, rows.shape, weight.shape[0]
    codes, scales = _quantised_rows(rows)
    tape.ran(gemm("int8_linear_matmul", "forward", gemm_shape(tokens, o, i), "int8", "int32"))
    wide = tape.empty("int8_linear_matmul", (tokens, o), "int32")
    tape.loads(wide, scales)
    out = tape.empty("int8_mm_dequant", (tokens, o), "fp16")
    if bias is not None and bias.dtype != "fp16":
        tape.in_place("add_", out, bias)
    if rows.dtype != "fp16":
        tape.loads(out)
        out = tape.empty("_to_copy", (tokens, o), rows.dtype)
    del wide, codes, scales
    return out


def _quantised_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes and fp32 scales of each row."""
    tape, (tokens, i) = rows.tape, rows.shape
    half = rows
    if rows.dtype != "fp16":
        tape.loads(rows)
        half = tape.empty("_to_copy", rows.shape, "fp16")
    scales = tape.empty("empty", (tokens,), "fp32")
    codes = tape.empty("empty", (tokens, i), "int8")
    tape.loads(half)
    magnitudes = tape.empty("abs", rows.shape, "fp16")
    tape.loads(magnitudes)
    mask = tape.empty("ge.Scalar", rows.shape, "bool")
    del magnitudes
    tape.loads(mask)
    found = tape.empty("any", (), "bool")
    del found
    tape.moves("int8_vectorwise_quant", "int8", half.numel * 3)
    del mask, half
    return codes, scales


def _backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    quantised, shape, _ = node.meta
    bias_gradient: Grads = []
    if len(node.needs) > 1:
        made = None
        if node.needs[1]:
            gradient.tape.loads(gradient)
            made = gradient.tape.empty("sum.dim_IntList", node.inputs[1][0], node.inputs[1][1])
        bias_gradient = [made]
    grad_x = _input_gradient(node, gradient, quantised, shape) if node.needs[0] else None
    return [grad_x, *bias_gradient]


def _input_gradient(node: Node, gradient: Tensor, quantised: Quantised, shape: Shape) -> Tensor:
    """The gradient times the whole matrix, written out for it."""
    tape, (tokens, i), o = gradient.tape, node.inputs[0][0], shape[0]
    write = _written_4bit if quantised.bits == 4 else _written_8bit
    matrix = write(gradient, shape, quantised)
    tape.ran(gemm("mm", "dgrad", gemm_shape(tokens, i, o), gradient.dtype))
    out = tape.empty("mm", node.inputs[0][0], gradient.dtype)
    del matrix
    return out


def _written_4bit(gradient: Tensor, shape: Shape, quantised: Quantised) -> Tensor:
    tape = gradient.tape
    scales = _scales(gradient, shape, both=False) if quantised.nested else []
    tape.loads_bytes(_packed_bytes(shape))
    matrix = tape.empty("dequantize_4bit", shape, quantised.dtype)
    del scales
    if quantised.dtype == gradient.dtype:
        return matrix
    tape.loads(matrix)
    return tape.empty("_to_copy", shape, gradient.dtype)


def _written_8bit(gradient: Tensor, shape: Shape, quantised: Quantised) -> Tensor:
    tape = gradient.tape
    tape.loads_bytes(shape[0] * shape[1])
    matrix = tape.empty("_to_copy", shape, gradient.dtype)
    factors = tape.empty("mul.Tensor", (shape[0], ONE), "fp32")
    tape.in_place("mul_", matrix, factors)
    return matrix


def _packed_bytes(shape: Shape) -> Size:
    return (shape[0] * shape[1]).over(2)

"""Bytes of bitsandbytes' own quantised tensors, on a CPU, against the packings of profiles/weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from memcalc.inputs.weights import load_weights

bnb = pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is not installed; pip install memcalc[test]"
)
SHAPES = [(64, 128), (48, 80), (257, 96), (1, 64), (130, 33 * 2)]


def parts(fmt: str, shape: tuple[int, int], stored: str) -> dict[str, int]:
    """Bytes by part, as the format's one packing of linears says."""
    found = load_weights(fmt)
    packing = found.packing(dict(found.roles)["linear"])
    return {p.name: p.bytes_of(*shape) for p in packing.parts if p.stored in ("both", stored)}


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def quantised(fmt: str, shape: tuple[int, int]) -> nn.Module:
    """A linear of bitsandbytes with weights quantised as it does when they move to a device."""
    rows, columns = shape
    dense = nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16)
    if fmt == "int8":
        made = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(dense.weight.data, requires_grad=False).to("cpu")
        return made
    kind, _, plain = fmt.partition("-")
    made = bnb.nn.Linear4bit(columns, rows, False, torch.bfloat16, not plain, kind)
    made.weight = bnb.nn.Params4bit(
        dense.weight.data, requires_grad=False, compress_statistics=not plain, quant_type=kind,
        module=made,
    ).to("cpu")  # fmt: skip
    return made


def in_memory(weight: Tensor) -> dict[str, int]:
    """Every tensor a quantised weight holds, by the name a checkpoint gives it."""
    if isinstance(weight, bnb.nn.Int8Params):
        return {"weight": size(weight), "SCB": size(weight.SCB)}
    state = weight.quant_state
    found = {"weight": size(weight), "absmax": size(state.absmax), "quant_map": size(state.code)}
    if state.nested:
        found["nested_absmax"] = size(state.state2.absmax)
        found["nested_quant_map"] = size(state.state2.code)
        found["nested_offset"] = size(state.offset)
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fmt", ["nf4", "nf4-plain", "fp4", "fp4-plain", "int8"])
def test_every_tensor_of_a_quantised_matrix_has_its_bytes(fmt, shape):
    assert in_memory(quantised(fmt, shape).weight) == parts(fmt, shape, "memory")


@pytest.mark.parametrize("fmt", ["nf4", "nf4-plain", "int8"])
def test_a_checkpoint_holds_the_same_and_a_short_description(fmt):
    shape = (64, 320)
    state = quantised(fmt, shape).state_dict()
    found = {name.rpartition(".")[2]: size(tensor) for name, tensor in state.items()}
    about = sum(found.pop(name) for name in [*found] if name.startswith("bitsandbytes__"))
    assert found == parts(fmt, shape, "file")
    assert 0 < about < 300 or fmt == "int8"


def test_the_shared_storage_of_int8_weights_counts_once():
    made = quantised("int8", (64, 128))
    assert made.weight.CB.data_ptr() == made.weight.data_ptr()
    assert size(made.weight.SCB) == 64 * 4, "scales are fp32, one a row"

"""bitsandbytes' CUDA code on tensors without data: its Python runs for real, its kernels do nothing.

The functions it registers for CUDA (and, where it has none, for any device) are called in place of
the operators, so that a tracker sees what they allocate inside.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import bitsandbytes
import bitsandbytes._ops as registry
import torch
from torch import Tensor

_PREFIX = "bitsandbytes::"
#: Operators whose CUDA code hands out what a kernel has filled: their shapes say it all.
_OPERATORS = (
    "gemm_4bit", "int8_mixed_scaled_mm", "int8_scaled_mm", "int8_mm_dequant",
    "int8_vectorwise_quant", "int8_linear_matmul",
)  # fmt: skip


def _registered() -> dict[str, Callable[..., Any]]:
    """The Python function behind each operator on CUDA."""
    found: dict[str, Callable[..., Any]] = {}

    def note(name: str, backend: str) -> Callable[[Any], Any]:
        def keep(function: Any) -> Any:
            found[name.removeprefix(_PREFIX)] = function
            return function

        return keep

    library, stream = mock.MagicMock(), "_cuda_getCurrentRawStream"
    library.cigemmlt_32.return_value = 0
    with (
        mock.patch.object(registry, "register_kernel", note),
        mock.patch("bitsandbytes.cextension.lib", library),
        mock.patch.object(torch._C, stream, lambda index: 0, create=True),
    ):
        _copy_of("default")
        cuda = _copy_of("cuda")
    cuda._cuda_device_of = lambda tensor: nullcontext()
    cuda.CUBLAS_Context = mock.MagicMock()
    cuda._gpu_dispatch_props = lambda index: (132, 9, 0)
    return found


def _copy_of(backend: str) -> Any:
    """A backend's module, run once more under another name: the library's own stays as it is."""
    folder = Path(bitsandbytes.__file__).parent / "backends" / backend
    name = f"bitsandbytes.backends.{backend}.ops_watched"
    spec = importlib.util.spec_from_file_location(name, folder / "ops.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUNCTIONS = _registered()


class _Packet:
    """An operator as its callers address it: by name, or by name and overload."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.default = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.default(*args, **kwargs)


@contextmanager
def cuda_code() -> Iterator[None]:
    """Inside, the operators of bitsandbytes are the Python code CUDA runs; no input is an outlier."""
    with ExitStack() as stack:
        for name in _OPERATORS:
            packet = _Packet(FUNCTIONS[name])
            stack.enter_context(mock.patch.object(torch.ops.bitsandbytes, name, packet))
        stack.enter_context(mock.patch.object(Tensor, "__bool__", lambda tensor: False))
        yield


def linear_of(fmt: str, columns: int, rows: int, bias: bool = False) -> Any:
    """A quantised linear of bf16 weights on the meta device."""
    nn, meta = bitsandbytes.nn, torch.device("meta")
    dense = torch.empty(rows, columns, dtype=torch.bfloat16)
    if fmt == "int8":
        made = nn.Linear8bitLt(columns, rows, bias, has_fp16_weights=False, threshold=6.0)
        made.weight = nn.Int8Params(dense, requires_grad=False).to("cpu")
        codes, scales = made.weight.data.to(meta), made.weight.SCB.to(meta)
        made.weight = nn.Int8Params(codes, requires_grad=False, CB=codes, SCB=scales)
        return _placed(made, bias, rows)
    kind, _, plain = fmt.partition("-")
    made = nn.Linear4bit(columns, rows, bias, torch.bfloat16, not plain, kind)
    packed = nn.Params4bit(
        dense, requires_grad=False, compress_statistics=not plain, quant_type=kind, module=made
    ).to("cpu")
    packed.quant_state.to(meta)
    made.weight = nn.Params4bit(
        packed.data.to(meta), requires_grad=False, quant_state=packed.quant_state,
        bnb_quantized=True, module=made,
    )  # fmt: skip
    return _placed(made, bias, rows)


def _placed(made: Any, bias: bool, rows: int) -> Any:
    if bias:
        made.bias = torch.nn.Parameter(
            torch.empty(rows, dtype=torch.bfloat16, device="meta"), requires_grad=False
        )
    return made

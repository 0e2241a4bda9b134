"""torch.compile for CUDA where there is none: the compiler's own programs, run on "meta" tensors.

A backend for torch.compile. Dynamo traces the block, AOTAutograd makes the joint graph, the compiler's
partitioner cuts it and its code generator writes the two CUDA programs, in which every buffer is taken
and given back in so many words. Only the kernels are left out: the programs run with buffers on "meta",
where a tracker sees each. For all this the compiler must believe in a GPU, so the few questions it
asks about one are answered here, as an H100 would.

Internals of one release, hence `RELEASE`: other releases are not tried.
"""

from __future__ import annotations

import contextlib
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch._inductor.codegen.triton
import torch._inductor.compile_fx as compile_fx
import torch._inductor.utils as inductor_utils
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.utils import get_donated_idxs
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_map

RELEASE = "2.13"
_CPU, _CUDA = torch.device("cpu"), torch.device("cuda", 0)
_H100 = types.SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30,
    warp_size=32, regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048,
    max_threads_per_block=1024, gcnArchName="", shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
)  # fmt: skip
Program = Callable[[list[Any]], Any]


def backend() -> Any:
    """A fresh backend for `torch.compile` or `Module.compile`; tensors must be on "meta"."""

    def forward(graph: torch.fx.GraphModule, inputs: Any) -> Program:
        return _program(_cuda_code(graph, is_backward=False))

    def backward(graph: torch.fx.GraphModule, inputs: Any) -> Program:
        return _program(_cuda_code(graph, is_backward=True))

    return aot_autograd(
        fw_compiler=forward,
        bw_compiler=backward,
        partition_fn=_partition,
        decompositions=select_decomp_table,
    )


def _partition(joint: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
    """The compiler's own passes and partition; passes that compute constants do so on a cpu."""
    _place(joint, _CPU)
    with V.set_fake_mode(_fake_mode(joint)):
        joint = compile_fx._recursive_joint_graph_passes(
            joint, skip_invoke_subgraph=True, input_device=_CPU
        )
    _place(joint, _CUDA)
    with _believing_in_a_gpu():
        return compile_fx.min_cut_rematerialization_partition(
            joint, inputs, compiler="inductor", **options
        )


def _place(graph: torch.fx.GraphModule, device: torch.device) -> None:
    """Put every tensor a graph speaks of on another device, in name."""

    def named(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    def moved(value: Any) -> Any:
        if isinstance(value, FakeTensor):
            value.fake_device = device
        return value

    for node in graph.graph.nodes:
        node.args = map_aggregate(node.args, named)
        node.kwargs = map_aggregate(node.kwargs, named)
        tree_map(moved, node.meta.get("val"))
    graph.recompile()


def _inputs(graph: torch.fx.GraphModule) -> list[Any]:
    return [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]


def _fake_mode(graph: torch.fx.GraphModule) -> Any:
    return next(v for v in _inputs(graph) if isinstance(v, FakeTensor)).fake_mode


def _cuda_code(graph: torch.fx.GraphModule, is_backward: bool) -> str:
    """The Python program the compiler writes for a graph, as torch._inductor.compile_fx would."""
    donated = get_donated_idxs() if is_backward else None
    _place(graph, _CPU)
    compile_fx.view_to_reshape(graph)
    mode = _fake_mode(graph)
    with torch.no_grad():
        compile_fx.fake_tensor_prop(graph, _inputs(graph), force_allow_non_fake_inputs=True)
    compile_fx._recursive_record_original_output_strides(graph)
    with V.set_fake_mode(mode):
        compile_fx._recursive_post_grad_passes(graph, is_inference=False)
    _place(graph, _CUDA)
    with _believing_in_a_gpu(), V.set_fake_mode(mode):
        lowering = GraphLowering(
            graph, example_inputs=_inputs(graph), shape_env=ShapeEnv(), graph_id=0,
            is_inference=False, is_backward=is_backward,
        )  # fmt: skip
        lowering.bw_donated_idxs = donated
        lowering.freeze_runtime_asserts()
        with (
            V.set_graph_handler(lowering),
            V.set_extern_kernel_nodes([]),
            V.set_debug_handler(DebugContext()),
        ):
            lowering.run(*_inputs(graph))
            return lowering.codegen()[0].value


#: Where somebody asks for the kernels that run: the bytes each reads and writes.
launched: list[int] | None = None


class _Kernel:
    """A kernel that computes nothing. parameters: the names of its arguments, as the compiler writes them."""

    def __init__(self, parameters: list[str]) -> None:
        self.passes = [2 if name.startswith("in_out") else 1 for name in parameters]

    def run(self, *args: Any, **options: Any) -> None:
        if launched is not None:
            tensors = (
                (x, n)
                for x, n in zip(args, self.passes, strict=False)
                if isinstance(x, torch.Tensor)
            )
            launched.append(sum(x.nbytes * passes for x, passes in tensors))


class _Products:
    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, out, **options: out


def _empty(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")


def _program(code: str) -> Program:
    """The program's `call`, its buffers on "meta" and its kernels idle."""
    start, end = code.index("def call(self, args):"), code.index("runner = Runner")
    head, *lines = code[start:end].splitlines()
    kept = [line for line in lines if not re.match(r"\s*(assert_|raw_stream\d* = )", line)]
    body = textwrap.dedent("\n".join(kept))
    body = body.replace("torch.cuda._DeviceGuard(0)", "nothing()")
    body = body.replace("torch.cuda.set_device(0)", "pass")
    names: dict[str, Any] = {
        "torch": torch, "aten": torch.ops.aten, "nothing": contextlib.nullcontext,
        "empty_strided_cuda": _empty, "extern_kernels": _Products(), "raw_stream0": 0,
        "reinterpret_tensor": lambda x, *layout: torch.as_strided(x, *layout),
    }  # fmt: skip
    heads = re.findall(r"def (triton_\w+)\(([^)]*)\)", code)
    parameters = {kernel: [one.strip() for one in given.split(",")] for kernel, given in heads}
    names |= {kernel: _Kernel(parameters[kernel]) for kernel in re.findall(r"triton_\w+", body)}
    exec(f"{head}\n{textwrap.indent(body, '    ')}", names)

    def run(args: list[Any]) -> Any:
        return names["call"](None, args)

    run._boxed_call = True  # type: ignore[attr-defined]  # it empties its list of arguments
    return run


@contextmanager
def _believing_in_a_gpu() -> Iterator[None]:
    """Answer the compiler's questions about devices and Triton without either."""
    versions = inductor_utils.TritonAttrsDescriptorVersion
    answers: dict[str, Any] = {
        "torch.cuda.get_device_properties": _H100,
        "torch.cuda._get_device_properties": _H100,
        "torch.cuda.get_device_capability": (9, 0),
        "torch.cuda.current_device": 0,
        "torch.cuda.device_count": 1,
        "torch.cuda.is_available": True,
        "torch.cuda.is_bf16_supported": True,
        "torch.cuda._lazy_init": None,
        "torch.cuda.set_device": None,
        "torch.cuda._exchange_device": 0,
        "torch.cuda._maybe_exchange_device": 0,
        "torch.utils._triton.has_triton": True,
        "torch.utils._triton.has_triton_package": True,
        "torch.utils._triton.triton_hash_with_backend": "none",
        "torch._inductor.scheduler.has_triton": True,
        "torch._inductor.codegen.triton.triton_version_uses_attrs_dict": True,
        "torch._inductor.utils.get_triton_attrs_descriptor_version": versions.V4_DICT,
        "torch._inductor.utils.get_gpu_dram_gbps": 3350,
    }
    seed = torch.ops.prims.inductor_lookup_seed.default
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, _always(answer), create=True))
        for interface in (CudaInterface, CudaInterface.Worker):
            properties = staticmethod(_always(_H100))
            stack.enter_context(mock.patch.object(interface, "get_device_properties", properties))
        stack.enter_context(mock.patch.object(CudaInterface, "is_available", _always(True)))
        stack.enter_context(mock.patch.object(seed, "prim_meta_impl", _seed_meta))
        stack.enter_context(mock.patch("torch.version.cuda", "13.0"))
        stack.enter_context(torch._inductor.config.patch(compile_threads=1))
        stack.enter_context(_a_name_for_triton())
        yield


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *args, **options: answer


def _seed_meta(seeds: torch.Tensor, index: int) -> Any:
    return torch._prims.TensorMeta(shape=(), strides=(), dtype=torch.int64, device=seeds.device)


@contextmanager
def _a_name_for_triton() -> Iterator[None]:
    """An empty module `triton`, unless there is a real one; the code generator reads two types of it."""
    if "triton" in sys.modules:
        yield
        return
    triton, language = types.ModuleType("triton"), types.ModuleType("triton.language")
    language.dtype = type("dtype", (), {})  # type: ignore[attr-defined]
    language.constexpr = type("constexpr", (), {})  # type: ignore[attr-defined]
    triton.language = language  # type: ignore[attr-defined]
    sys.modules |= {"triton": triton, "triton.language": language}
    try:
        yield
    finally:
        del sys.modules["triton"], sys.modules["triton.language"]

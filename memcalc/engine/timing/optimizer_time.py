"""Time of a rank's optimizer step: bytes its kernels move, kernels it launches, products of Muon.

Every implementation is a number of passes over four kinds of elements: parameters (the master copies
where there are some), gradients, states, and temporaries as wide as the states. The passes are those
of torch.optim's own code, kernel by kernel.
Source: PyTorch 2.13, torch/optim/adamw.py (_single_tensor_adam, _multi_tensor_adam, _fused_adam),
sgd.py, _adafactor.py, _muon.py; torch/nn/utils/clip_grad.py; aten/src/ATen/native/cuda/MultiTensorApply.cuh.
Checked by: unit/test_optimizer_time.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.optimizer import OptimizerPlan, state_tensors
from memcalc.engine.plan import Plan
from memcalc.engine.sizes import product
from memcalc.engine.states import all_leaves
from memcalc.engine.tensors import Tensor
from memcalc.engine.timing.kernel_times import gemm_s, moved_s
from memcalc.inputs.rates import Rates


class Passes(NamedTuple):
    """How often a step reads or writes each kind of element, and how many kernels do it.

    states: over all states of a parameter together. A kernel that reads and writes a tensor passes
    it twice.
    """

    parameters: float
    gradients: float
    states: float
    temporaries: float
    kernels: int


#: (optimizer, implementation) -> passes. AdamW foreach: decay (2 p), lerp (2 m, g), mul (2 v), addcmul
#: (2 v, g), sqrt (v, t), div (2 t), add (2 t), addcdiv (2 p, m, t); states count both m and v.
_PASSES: Final = {
    ("adamw", "fused"): Passes(2, 1, 2, 0, 1),
    ("adamw", "foreach"): Passes(4, 2, 4, 6, 8),
    ("adamw-8bit", "foreach"): Passes(2, 1, 2, 0, 1),
    ("sgd", "fused"): Passes(2, 1, 0, 0, 1),
    ("sgd", "foreach"): Passes(2, 1, 0, 0, 1),
    ("momentum", "fused"): Passes(2, 1, 2, 0, 1),
    ("momentum", "foreach"): Passes(2, 1, 5, 0, 3),
    ("lion", "foreach"): Passes(4, 2, 3, 4, 5),
    ("adafactor", "foreach"): Passes(5, 3, 0, 9, 12),
    ("none", "foreach"): Passes(0, 0, 0, 0, 0),
}
#: Muon's matrices: momentum (2 m, g), blend (m, g, t), normalise and step (2 p, 3 t).
_MUON: Final = Passes(2, 2, 3, 4, 8)
#: Newton-Schulz: iterations, and products of each.
_ITERATIONS: Final = 5
#: Elements one launch of a foreach kernel takes: 320 blocks of 65,536.
_ELEMENTS_PER_LAUNCH: Final = 320 * 65536
#: Clipping reads every gradient for its norm, then reads and writes it.
_CLIP: Final = Passes(0, 3, 0, 0, 3)


class Stepped(NamedTuple):
    """What a rank's optimizer steps over: elements, bytes by kind, tensors, products (m, n, k)."""

    elements: int
    tensors: int
    parameter_bytes: int
    gradient_bytes: int
    state_bytes: int
    temporary_bytes: int
    products: tuple[tuple[int, int, int, int], ...]  # (times, m, n, k)


def stepped_by(plans: Sequence[Plan]) -> Stepped:
    """What the optimizer of a rank with these chunks of the model steps over."""
    totals = [0] * 6
    products: list[tuple[int, int, int, int]] = []
    for plan in plans:
        structure, runs = plan.structure(plan.keeps_gradients)
        stepped = plan.strategy.optimized(all_leaves(structure, runs))
        times_of = Counter(map(id, stepped))
        for leaf in {id(one): one for one in stepped}.values():
            times, count = times_of[id(leaf)], leaf.numel.value(plan.values)
            for index, size in enumerate(_bytes_of(leaf, plan, count)):
                totals[index] += times * size
            if _is_muon(leaf, plan.optimizer):
                products += [(times * n, *one) for n, one in _newton_schulz(leaf, plan)]
    elements, tensors, parameters, gradients, kept, temporary = totals
    return Stepped(elements, tensors, parameters, gradients, kept, temporary, tuple(products))


def _bytes_of(leaf: Tensor, plan: Plan, count: int) -> tuple[int, int, int, int, int, int]:
    """(elements, tensors, bytes of parameters, gradients, states, a temporary) of one leaf."""
    optimizer = plan.optimizer
    wide = optimizer.master or leaf.dtype == "fp32"
    item = 4 if wide else ITEMSIZE[leaf.dtype]
    own = state_tensors(leaf, optimizer)[1 if optimizer.master else 0 :]
    state = sum(product(shape).value(plan.values) * ITEMSIZE[dtype] for shape, dtype in own)
    temporary = ITEMSIZE[optimizer.state_dtype or ("fp32" if wide else leaf.dtype)]
    return count, 1, count * item, count * ITEMSIZE[leaf.dtype], state, count * temporary


def optimizer_s(rates: Rates, plan: Plan, stepped: Stepped) -> float:
    """Seconds of one optimizer step of a rank, clipping and master copies included."""
    optimizer = plan.optimizer
    impl = optimizer.impl
    passes = _passes(optimizer)
    if optimizer.name == "none" or not stepped.elements:
        return 0.0
    total = _known_s(rates, f"{optimizer.name} {impl}", stepped)
    if total is None:
        total = _time_of(rates, passes, stepped, impl, optimizer.in_backward)
    if optimizer.grad_clip:
        clipped = _known_s(rates, "clip", stepped)
        total += _time_of(rates, _CLIP, stepped, "foreach", False) if clipped is None else clipped
    if optimizer.master:
        total += moved_s(rates, *_copies(stepped, optimizer))
    for times, m, n, k in stepped.products:
        total += times * gemm_s(rates, "bf16", 1, m, n, k)
    return total


def _known_s(rates: Rates, name: str, stepped: Stepped) -> float | None:
    """Seconds by a rate measured for this very code, where the calibration has it."""
    dtype = "fp32" if stepped.parameter_bytes == 4 * stepped.elements else "bf16"
    rate = rates.optimizer.get(f"{name} {dtype}")
    if rate is None:
        return None
    return stepped.elements * rate.s_per_element + stepped.tensors * rate.s_per_tensor


def _passes(optimizer: OptimizerPlan) -> Passes:
    if optimizer.name == "muon":
        return _MUON
    impl = "fused" if optimizer.impl in ("fused", "multi_tensor") else "foreach"
    known = _PASSES.get((optimizer.name, impl))
    return known or _PASSES[optimizer.name, "foreach"]


def optimizer_work(plan: Plan, stepped: Stepped) -> tuple[float, float]:
    """(FLOPs of products, bytes read and written) of one step; only Muon's has products."""
    optimizer = plan.optimizer
    if optimizer.name == "none" or not stepped.elements:
        return 0.0, 0.0
    moved = _moved(_passes(optimizer), stepped)
    if optimizer.grad_clip:
        moved += _moved(_CLIP, stepped)
    if optimizer.master:
        moved += _copies(stepped, optimizer)[0]
    item, flops = ITEMSIZE["bf16"], 0.0
    for times, m, n, k in stepped.products:
        flops += times * 2 * m * n * k
        moved += times * item * (k * (m + n) + m * n)
    return flops, moved


def _moved(passes: Passes, stepped: Stepped) -> float:
    """Bytes that some passes read and write."""
    return (
        passes.parameters * stepped.parameter_bytes
        + passes.gradients * stepped.gradient_bytes
        + passes.states * stepped.state_bytes
        + passes.temporaries * stepped.temporary_bytes
    )


def _time_of(rates: Rates, passes: Passes, stepped: Stepped, impl: str, alone: bool) -> float:
    """Seconds of some passes: what they move, and their launches where those take longer."""
    moved = _moved(passes, stepped)
    singly = impl == "loop" or alone
    kernels = stepped.tensors if singly else -(-stepped.elements // _ELEMENTS_PER_LAUNCH)
    launches = passes.kernels * kernels
    return float(max(moved_s(rates, moved, launches), launches * rates.launch_s))


def _copies(stepped: Stepped, optimizer: OptimizerPlan) -> tuple[float, int]:
    """Bytes and kernels of copying stepped masters into 16-bit parameters, and gradients widened."""
    narrow = stepped.elements * 2
    moved = stepped.parameter_bytes + narrow
    if optimizer.widens_gradients:
        moved += stepped.gradient_bytes + stepped.elements * 4
    return moved, 2


def _is_muon(leaf: Tensor, optimizer: OptimizerPlan) -> bool:
    named = leaf.name.startswith("layers.") and len(leaf.shape) == 2
    return optimizer.name == "muon" and named


def _newton_schulz(leaf: Tensor, plan: Plan) -> list[tuple[int, tuple[int, int, int]]]:
    """Products of orthogonalising one matrix: Gram matrix, its square, and the update, five times."""
    rows, columns = (size.value(plan.values) for size in leaf.shape)
    side, long = min(rows, columns), max(rows, columns)
    return [
        (_ITERATIONS, (side, side, long)),
        (_ITERATIONS, (side, side, side)),
        (_ITERATIONS, (side, long, side)),
    ]

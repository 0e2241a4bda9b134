"""AdaLoRA: a low-rank adapter in three factors, a loss that keeps them orthogonal, scores of importance.

Symbols: x (b, s, i) the linear's input, A (r, i), E (r, 1), B (o, r), n the rank as a number. Added in
place to the linear's result: B((E A) x) times a number over n. All ranks are there until the end: a rank
that loses its budget is masked in E, no tensor becomes smaller. The model's loss gets |A A^T - I| and
|B^T B - I| of every adapter, whose gradients so exist from the start of backward. RankAllocator keeps
three tensors as large as each of A, B and E beside the optimizer's, from its first call on.
Source: PEFT 0.21.2, tuners/adalora/layer.py (SVDLinear.forward, RankAllocator.update_ipt),
tuners/adalora/model.py (AdaLoraModel.forward). Checked by: oracle/test_adalora.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.engine.adapters.dora import over
from memcalc.engine.adapters.leaf import added
from memcalc.engine.aten.matmul import dispatched, linear
from memcalc.engine.aten.pointwise import add_in_place, dropout, mul, out_like, scale, to
from memcalc.engine.autograd import Grads, Node, node_for
from memcalc.engine.kernel_log import gemm, gemm_shape
from memcalc.engine.sizes import ONE, Size
from memcalc.engine.tensors import FIRST, ORTHOGONAL, Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build

#: The rank's letter among the dims.
RANK = "r_A"
#: Tensors of RankAllocator (ipt, exp_avg_ipt, exp_avg_unc) for each parameter that trains.
IMPORTANCE = 3


def with_svd(
    build: Build, x: Tensor, result: Tensor, name: str, features: tuple[Size, Size]
) -> Tensor:
    """result += B((E A) dropout(x)) scaling / n."""
    adapter = build.kernels.adapter
    assert adapter is not None
    (i, o), rank = features, build[RANK]
    a = added(build, f"{name}.lora_A", (rank, i))
    b = added(build, f"{name}.lora_B", (o, rank))
    e = added(build, f"{name}.lora_E", (rank, ONE))
    added(build, f"{name}.ranknum", (ONE,), False)
    count = build.tape.empty("add.Tensor", (ONE,), adapter.dtype)
    x = to(x, adapter.dtype)
    more = over(scale(_product(build, _product(build, _dropped(build, x), mul(a, e)), b)), count)
    return _added_to_view(result, more) if _is_view(build, name) else add_in_place(result, more)


def _is_view(build: Build, name: str) -> bool:
    """Whether a linear's result is a view of its product: with a bias, and of rows of sequences."""
    flat = build.kernels.traits.inline_mlp and name in ("up_proj", "down_proj")  # OPT's, of tokens
    return not flat and f"layers.{build.tape.block}.{name}.bias" in build.tape.leaves


def _dropped(build: Build, x: Tensor) -> Tensor:
    adapter = build.kernels.adapter
    return dropout(x, 0.5) if adapter is not None and adapter.dropout else x


def _product(build: Build, x: Tensor, y: Tensor) -> Tensor:
    """x @ y.T; autocast keeps no cast of what is seen transposed."""
    if not build.kernels.autocast:
        return linear(x, y)
    dtype = build.kernels.compute_dtype
    y = to(y, dtype)
    return linear(to(x, dtype), y)


def _added_to_view(result: Tensor, more: Tensor) -> Tensor:
    """result += more, where result is a view of a biased product: backward copies its gradient twice.

    Source: torch/csrc/autograd/functions/tensor.cpp (CopySlices).
    """
    tape = result.tape
    base = result.detach()
    if result.node is not None:
        edge = result.node.edges[0]
        assert edge is not None and isinstance(edge[0], Node)
        base.node, base.output_nr = edge[0], edge[1]
        base.requires_grad = True
    node = node_for(_copied_backward, base, more)
    tape.in_place("add_", result, more)
    out = result.detach()
    if node is None:
        return out
    del base
    return Node(tape, _strided_backward, (node.output(out.detach()),)).output(out)


def _strided_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    """as_strided's: the gradient laid into zeros as large as the base."""
    gradient = grads[0]
    assert gradient is not None
    return [gradient.tape.empty("new_zeros", gradient.shape, gradient.dtype)]


def _copied_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    gradient = grads[0]
    assert gradient is not None
    result = out_like("new_empty_strided", gradient)
    return [result, out_like("clone", gradient)]


def orthogonal(build: Build, output: tuple[Tensor, Tensor], layers: int) -> Tensor:
    """The loss with the regulariser of every adapter added in place; the loss itself without AdaLoRA.

    output: the loss and the logits, which live as long as this runs.
    """
    adapter, loss = build.kernels.adapter, output[0]
    if adapter is None or adapter.method != "adalora":
        return loss
    total: Tensor | None = None
    alive: list[Tensor] = []
    for index in range(layers):
        build.tape.mark("tail block", index)
        build.tape.block = index
        build.at(ORTHOGONAL, "loss")
        for leaf in _factors(build, index):
            total = _summed(total, _distance(build, leaf, alive))
    build.tape.block = -1
    build.tape.mark("tail end", -1)
    build.at("loss", "loss")
    assert total is not None
    mean = scale(total, "div.Tensor")
    del total
    return add_in_place(loss, scale(mean))


def _factors(build: Build, index: int) -> list[Tensor]:
    """A and B of a layer's adapters, in order of registration."""
    begin = f"layers.{index}."
    return [
        leaf
        for name, leaf in build.tape.leaves.items()
        if name.startswith(begin) and name.endswith((".lora_A", ".lora_B"))
    ]


def _distance(build: Build, leaf: Tensor, alive: list[Tensor]) -> Tensor:
    """The norm of A A^T - I, or B^T B - I; alive: that product and I, until the next ones are made."""
    square = _gram(build, leaf, leaf.name.endswith("lora_A"))
    alive[:1] = [square]
    identity = build.tape.empty("empty_like", square.shape, square.dtype)
    alive[1:] = [identity]
    return _norm(_less(square, identity))


def _gram(build: Build, leaf: Tensor, outer: bool) -> Tensor:
    """p @ p.T, or p.T @ p: two factors of one tensor, whose two gradients are summed."""
    turned = leaf.detach()
    if build.tape.grad_enabled:
        turned = Node(build.tape, _as_it_is, (leaf,)).output(turned)
    if build.kernels.autocast:
        turned = to(turned, build.kernels.compute_dtype)
    x = build.cast_param(leaf)
    node = node_for(_gram_backward, *((x, turned) if outer else (turned, x)))
    rank, width = x.shape if outer else x.shape[::-1]
    ran = gemm("mm", "forward", gemm_shape(rank, rank, width), x.dtype)
    (out,) = dispatched(x.tape, ran, [((rank, rank), x.dtype)])
    if node is None:
        return out
    node.meta = width
    for factor in (x, turned):
        node.save(factor, "wgrad")
    return node.output(out)


def _as_it_is(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    return [grads[0]]


def _gram_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    x, (rank, _) = saved[0], node.outputs[0][0]
    found = []
    for _ in range(2):
        x.tape.ran(gemm("mm", "wgrad", gemm_shape(rank, node.meta, rank), x.dtype))
        found.append(x.tape.empty("mm", x.shape, x.dtype))
    return [found.pop(), found.pop()]


def _less(x: Tensor, y: Tensor) -> Tensor:
    """x - y for a y without gradient."""
    node = node_for(_as_it_is, x)
    out = out_like("sub.Tensor", x)
    return node.output(out) if node else out


def _norm(x: Tensor) -> Tensor:
    """The Frobenius norm: keeps x and its result."""
    node = node_for(_norm_backward, x)
    out = x.tape.empty("linalg_vector_norm", (ONE,), x.dtype)
    if node is None:
        return out
    node.save(x, "dgrad")
    node.save(out, "dgrad")
    return node.output(out)


def _norm_backward(node: Node, grads: Grads, saved: list[Any]) -> Grads:
    x = saved[0]
    share = out_like("div.Tensor", x)
    zero = x.tape.empty("eq.Scalar", (ONE,), "bool")
    out = out_like("mul.Tensor", share)
    del zero
    return [out]


def _summed(total: Tensor | None, more: Tensor) -> Tensor:
    """regu_loss += more: the first is 0 + more."""
    if total is None:
        node = node_for(_as_it_is, more)
        out = out_like(FIRST, more)
        return node.output(out) if node else out
    return add_in_place(total, more)

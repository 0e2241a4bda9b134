"""Bottleneck adapters: two linears with biases and an activation between, of width n_b (dim of that name).

Symbols: h the stream, f(y) = W_up act(W_down y + b_down) + b_up. Houlsby's two a layer take what the
attention's and the MLP's last linear make, y + f(y), before the residual sum; act is SiLU in the `adapters`
library. Pfeiffer's one takes the sum after the MLP: x + (y + f(x + y)) of the branch y; act is ReLU. He's
runs beside the MLP, of its input: MLP(x) + s f(x). Norms stay frozen, as the library has them (Houlsby et
al. train them too).
Source: Houlsby et al. 2019 (arXiv:1902.00751), Pfeiffer et al. 2020 (arXiv:2005.00247), He et al. 2021
(arXiv:2110.04366); https://docs.adapterhub.ml/methods.html, configurations double_seq_bn, seq_bn, par_bn.
Checked by: oracle/test_bottleneck.py, against modules of those definitions around transformers' own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memcalc.engine.adapters.leaf import added
from memcalc.engine.aten.matmul import linear
from memcalc.engine.aten.pointwise import activation, activation_by_result, add, scale, to
from memcalc.engine.sizes import Size
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build

#: The width's letter among the dims.
WIDTH: Final = "n_b"
#: Linears whose results Houlsby's adapters take.
_ENDS: Final = ("o_proj", "down_proj")


def _kind(build: Build) -> str:
    adapter = build.kernels.adapter
    return adapter.kind if adapter is not None else ""


def after_linear(build: Build, result: Tensor, name: str) -> Tensor:
    """Houlsby's adapter on the result of a linear that ends a branch; the result itself of any other."""
    if _kind(build) != "houlsby" or name not in _ENDS or build.tape.block < 0:
        return result
    op, part = build.tape.op, build.tape.records[build.tape.block, build.tape.op].part
    build.at(f"{name}.adapter", part)
    out = add(result, _bottleneck(build, result, f"{name}.adapter"))
    build.at(op, part)
    return out


def after_sum(build: Build, x: Tensor, branch: Tensor, part: str) -> Tensor:
    """The branch of an MLP with Pfeiffer's adapter of the sum; any other branch as it is."""
    if _kind(build) != "pfeiffer" or part != "mlp":
        return branch
    build.at("mlp.adapter", "mlp")
    return add(branch, _bottleneck(build, add(x, branch), "mlp.adapter"))


def beside(build: Build, x: Tensor, fed: Tensor) -> Tensor:
    """What an MLP made of x with He's adapter of x; as it is without."""
    if _kind(build) != "parallel":
        return fed
    build.at("mlp.adapter", "mlp")
    return add(fed, scale(_bottleneck(build, x, "mlp.adapter")))


def _bottleneck(build: Build, x: Tensor, name: str) -> Tensor:
    """f(x) in the adapter's dtype, given back in x's."""
    adapter = build.kernels.adapter
    assert adapter is not None
    h, n, dtype = build["h"], build[WIDTH], x.dtype
    read = x if build.kernels.autocast else to(x, adapter.dtype)  # x lives on in its caller's frame
    made = own_linear(build, read, f"{name}.down", (h, n))
    made = activation(made, "silu") if _kind(build) == "houlsby" else relu(made)
    made = own_linear(build, made, f"{name}.up", (n, h))
    return made if build.kernels.autocast else to(made, dtype)


def relu(x: Tensor) -> Tensor:
    """ReLU: keeps its result."""
    return activation_by_result(x, "relu", "threshold_backward")


def own_linear(build: Build, x: Tensor, name: str, features: tuple[Size, Size]) -> Tensor:
    """A linear with bias that the method adds."""
    i, o = features
    weight, bias = added(build, f"{name}.weight", (o, i)), added(build, f"{name}.bias", (o,))
    if not build.kernels.autocast:
        return linear(x, weight, bias)
    bias, weight = build.cast_param(bias), build.cast_param(weight)
    return linear(to(x, build.kernels.compute_dtype), weight, bias)

"""What every part of a Megatron layer uses: rows of a rank, parameters, how a linear is divided.

Activations are (s, b, h), the sequence outermost. Under sequence parallelism the stream between
layers has a rank's s/t positions; linears gather them on the way in and scatter them on the way out.
Letters beside those of engine/dims.py, where a layout has them: s/t positions of a rank, e experts of
a rank. Source: Megatron-Core 0.14, tensor_parallel/layers.py, extensions/transformer_engine.py.
Checked by: unit/test_megatron_saved.py.
"""

from __future__ import annotations

from memcalc.engine.aten.te_linear import How, norm
from memcalc.engine.build import Build
from memcalc.engine.checkpoint_discard import Discarded
from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.kernels import Megatron
from memcalc.engine.ledger import note_collective
from memcalc.engine.sizes import Size, product
from memcalc.engine.tensors import Shape, Tensor


def options(build: Build) -> Megatron:
    """How the layers run."""
    found = build.kernels.megatron
    assert found is not None
    return found


def recomputes(build: Build, part: str) -> bool:
    """Whether backward computes this part of a layer again (--recompute-modules)."""
    return part in options(build).recomputes


def letter(build: Build, name: str, otherwise: str) -> Size:
    """A dim that only a divided layer has; what it stands for in a whole one."""
    return build.dims.get(name, build[otherwise])


def all_rows(build: Build) -> Shape:
    """(s, b): the positions a rank attends from."""
    return (build["s"], build["b"])


def own_rows(build: Build) -> Shape:
    """(s_t, b): the positions of the stream between layers on this rank."""
    if not options(build).sequence:
        return all_rows(build)
    return (letter(build, "s_t", "s"), build["b"])


def column(build: Build) -> How:
    """A linear divided by output columns."""
    chosen = options(build)
    sums = "gradient" if chosen.split and not chosen.sequence else ""
    return How(
        gathers=chosen.sequence, rows=all_rows(build), adds_in_place=chosen.adds_in_place, sums=sums
    )  # fmt: skip


def row(build: Build) -> How:
    """A linear divided by input rows."""
    chosen = options(build)
    sums = "output" if chosen.split and not chosen.sequence else ""
    return How(
        scatters=chosen.sequence, rows=own_rows(build), adds_in_place=chosen.adds_in_place, sums=sums
    )  # fmt: skip


def alone(build: Build) -> How:
    """A linear every rank has in full."""
    return How(adds_in_place=options(build).adds_in_place)


def note_vocabulary_sums(build: Build, logits: Tensor, at_once: bool = False) -> None:
    """What tp ranks exchange for the loss of their parts of the vocabulary: three fp32 a position.

    The largest logit, the label's and the sum of exponentials, one after the other; at_once: in one
    exchange, Transformer Engine's all-gather, which is entered as a sum.
    """
    if not options(build).split:
        return
    rows = product(logits.shape[:-1]) * ITEMSIZE["fp32"]
    for _ in range(1 if at_once else 3):
        note_collective(build.tape, "all_reduce", rows * (3 if at_once else 1), "tp")


def parameters(build: Build, name: str, shape: tuple[Size, Size], bias: bool) -> tuple[Tensor, ...]:
    """`name.weight` (o, i), and `name.bias` (o) where there is one."""
    weight = build.param(f"{name}.weight", shape)
    return (weight, build.param(f"{name}.bias", (shape[0],))) if bias else (weight,)


def norm_parameters(build: Build, name: str, width: Size) -> tuple[Tensor, ...]:
    """Weight, and bias of a LayerNorm."""
    weight = build.param(f"{name}.weight", (width,))
    if build.config.norm_type == "layernorm":
        return (weight, build.param(f"{name}.bias", (width,)))
    return (weight,)


def normed_stream(build: Build, x: Tensor, name: str) -> tuple[Tensor, Discarded | None]:
    """A norm that stands alone before its branch; with the call that makes it again, where one does."""

    def apply(x: Tensor) -> tuple[Tensor]:
        build.at(name, "norm")
        return (norm(x, norm_parameters(build, name, build["h"])),)

    if not recomputes(build, "layernorm"):
        return apply(x)[0], None
    freed = Discarded(apply, x)
    return freed.outputs[0], freed

"""How ranks share a tensor: the mark every tensor that PyTorch's DTensor wraps carries.

Checked by: oracle/test_tensor_parallel.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from memcalc.engine.tensors import Shape


class Placed(NamedTuple):
    """Of a parameter: whole on every rank, or this rank's part. Of a result: that DTensor wraps it.

    partial: every rank's gradient is a term of a sum that is still to be made. gradient: the
    gradient's shape where it is not the parameter's (an embedding's has the rows of all ranks).
    axes: along how many axes (tp, dp) ranks share it.
    """

    whole: bool = True
    partial: bool = False
    gradient: Shape | None = None
    axes: int = 1


def cut_again(placed: Placed | None, ranks: int) -> Placed | None:
    """What dp ranks cut of a parameter: of a plain one, or of one that tp ranks share already.

    A group of one rank cuts nothing, and asks no one for the norm of its part.
    """
    if placed is None:
        return Placed(whole=False) if ranks > 1 else None
    return Placed(whole=placed.whole, axes=placed.axes + (ranks > 1))


WHOLE: Final = Placed()
PART: Final = Placed(whole=False)

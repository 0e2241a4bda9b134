"""Loading a model onto a GPU: what is there at the most while its weights arrive.

direct: each tensor goes to the device once, in the dtype it is kept in (transformers' from_pretrained with
a device map, or a model made on meta tensors); ranks that cut parameters do it group by group
(loading_ranks.py). copy: the whole state dict is read onto the device, then copied into a model that is
there already (torch.load with map_location, load_state_dict). Quantised on the way, matrix after matrix:
the 16-bit one arrives, the packed one is made, the 16-bit one goes; LLM.int8 quantises from a second
16-bit copy. That is given as an upper bound, as if the largest came last.
Source: transformers 5.23, core_model_loading.py (no threads where it quantises), integrations/
bitsandbytes.py; bitsandbytes 0.50.2, nn/modules.py (_quantize). Checked by: oracle/test_loading.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.quantised import Held, Weights
from memcalc.errors import unknown

#: How weights come to the device.
WAYS: Final = ("direct", "copy", "rank0")
#: What a checkpoint of a packed model holds.
SOURCES: Final = ("16bit", "prequantised")
#: 16-bit copies of a matrix that exist while it is quantised.
_COPIES: Final = {"dequantise": 1, "int8": 2}


class Loading(NamedTuple):
    """Requested bytes while a model is loaded. weights_bytes: at the end; passing_bytes: beside them.

    exact: held against the code that loads; else an upper bound, or by reading.
    """

    weights_bytes: int
    passing_bytes: int
    passing: str
    exact: bool = True

    @property
    def peak_bytes(self) -> int:
        return self.weights_bytes + self.passing_bytes


def loading(weights: Weights, how: str = "direct", prequantised: bool = False) -> Loading:
    """The peak of loading weights in a format. prequantised: the checkpoint holds them packed.

    Raises ConfigError for a way that is none.
    """
    if how not in WAYS:
        raise unknown("load", how, WAYS)
    total = weights.resident_bytes
    if how == "copy":
        return Loading(total, total, "the state dict that was read")
    copies = _COPIES.get(weights.format.kernel, 0)
    packed = [held for held in weights.leaves if held.packing != weights.base]
    if prequantised or not copies or not packed:
        return Loading(total, 0, "nothing")
    largest = max(packed, key=lambda held: held.elements)
    return Loading(
        total,
        _in_flight(largest, weights.base) * copies,
        f"{largest.name} in {weights.base}",
        False,
    )


def _in_flight(held: Held, base: str) -> int:
    """Bytes of a matrix before it is packed."""
    return held.elements * ITEMSIZE[base]

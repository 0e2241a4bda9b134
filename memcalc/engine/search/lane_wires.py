"""Wires of many layouts at once: seconds of exchanges whose ranks and places differ from lane to lane.

A lane is one layout; lanes whose groups have the same shape are priced together, by the same function as a
single estimate. Checked by: property/test_search_grid.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.engine.timing.topology import Group, Wires, exchange_s, group_of


class Layouts:
    """Degrees of lanes: tp, cp, ep, etp, dp, pp, each an int64 array of shape (lanes,)."""

    def __init__(self, degrees: Mapping[str, Any]) -> None:
        self.degrees = dict(degrees)

    def of(self, name: str) -> Any:
        """One degree."""
        return self.degrees[name]

    def take(self, lanes: Any) -> Layouts:
        """Those of some lanes."""
        return Layouts({name: values[lanes] for name, values in self.degrees.items()})

    @property
    def expert_copies(self) -> Any:
        """Data-parallel ranks of the experts."""
        d = self.degrees
        return d["tp"] * d["cp"] * d["dp"] // (d["ep"] * d["etp"])


class LaneWires:
    """Prices exchanges of lanes. beside_products: the stack's tp_beside_products."""

    def __init__(self, wires: Wires, layouts: Layouts, beside_products: bool = False) -> None:
        self.wires, self.layouts, self.beside_products = wires, layouts, beside_products
        self.known: dict[bytes, list[tuple[Group, Any]]] = {}
        self.of_axis: dict[str, list[tuple[Group, Any]]] = {}

    def ranks(self, axis: str) -> Any:
        """Ranks of an axis of the ledger."""
        return self.layouts.expert_copies if axis == "edp" else self.layouts.of(axis)

    def exchange_s(self, kind: str, axis: str, call_bytes: Any) -> Any:
        """Seconds of one call of the ledger's axis, by lane; 0 where it has one rank."""
        if axis not in self.of_axis:
            d = self.layouts.degrees
            strides = {
                "tp": 1, "etp": 1, "cp": d["tp"], "ep": d["etp"], "edp": d["etp"] * d["ep"],
            }  # fmt: skip
            self.of_axis[axis] = self._groups(self.ranks(axis), strides[axis])
        return self._seconds(kind, call_bytes, self.of_axis[axis])

    def group_s(self, kind: str, call_bytes: Any, ranks: Any, stride: Any) -> Any:
        """Seconds of one call among so many ranks, so many numbers apart, by lane.

        call_bytes: shape (lanes,) or (lanes, ...).
        """
        return self._seconds(kind, call_bytes, self._groups(ranks, stride))

    def _seconds(self, kind: str, call_bytes: Any, groups: list[tuple[Group, Any]]) -> Any:
        import numpy as np

        lanes = len(self.layouts.of("tp"))
        call_bytes = np.asarray(call_bytes, float)
        if call_bytes.ndim == 0:
            call_bytes = np.broadcast_to(call_bytes, lanes)
        found = np.zeros(call_bytes.shape)
        for group, own in groups:
            found[own] = exchange_s(kind, call_bytes[own], group, self.wires)
        return found

    def _groups(self, ranks: Any, stride: Any) -> list[tuple[Group, Any]]:
        """Groups of more than one rank, and the lanes that have each."""
        import numpy as np

        lanes = len(self.layouts.of("tp"))
        ranks, stride = (np.broadcast_to(one, lanes) for one in (ranks, stride))
        both = ranks.astype(np.int64) << 32 | stride
        key = both.tobytes()
        if key not in self.known:
            unique, where = np.unique(both, return_inverse=True)
            groups: dict[Group, list[int]] = {}
            for number, one in enumerate(unique.tolist()):
                group = group_of(one >> 32, one & 0xFFFFFFFF, self.wires)
                groups.setdefault(group, []).append(number)
            found = []
            for group, numbers in groups.items():
                if group.ranks > 1:
                    chosen = np.zeros(len(unique), bool)
                    chosen[numbers] = True
                    every = len(groups) == 1
                    found.append((group, slice(None) if every else np.flatnonzero(chosen[where])))
            self.known[key] = found
        return self.known[key]

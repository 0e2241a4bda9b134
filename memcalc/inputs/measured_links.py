"""Rates of links from a calibration: NCCL's collectives as they were measured, in the default's tiers.

Checked by: unit/test_measured_rates.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.inputs.rate_figures import Curve, LinkRate, LinkRates, Rates

Row = Mapping[str, Any]


def measured_links(rows: Sequence[Row], base: Rates, filled: list[str]) -> LinkRates:
    """The default's tiers with the curves of the collectives that were measured, NCCL's alone.

    Of one host they are those of the link, or of PCIe where there is none; of several the network's.
    """
    links = base.links
    mine = [row for row in rows if row["backend"] == "nccl" and row.get("bus_bytes_per_s")]
    if not mine:
        filled.append("links")
        return links
    near = "pcie" if links.link is None else "link"
    for tier, hosts in ((near, {1}), ("network", {row.get("hosts", 1) for row in mine} - {1})):
        rate: LinkRate | None = getattr(links, tier)
        own = [row for row in mine if row.get("hosts", 1) in hosts]
        if rate is not None and own:
            links = links._replace(**{tier: _with_curves(rate, own)})
    return links


def _with_curves(rate: LinkRate, rows: Sequence[Row]) -> LinkRate:
    """A tier whose collectives follow one line each: alpha and the bytes/s a rank sends."""
    curves: dict[str, list[Curve]] = {}
    for row in sorted(rows, key=lambda row: int(row["ranks"])):
        alpha, bus = row["alpha_s"], row["bus_bytes_per_s"]
        curves.setdefault(row["what"], []).append(Curve(row["ranks"], alpha, bus, alpha, bus))
    gathered = curves.get("all_gather") or next(iter(curves.values()))
    return rate._replace(
        alpha_s=gathered[-1].large_s,
        bus_bytes_per_s=gathered[-1].large_bytes_per_s,
        **{kind: tuple(lines) for kind, lines in curves.items()},
    )

"""Whole default calibrations: what every table says, class by class, and the files they end in.

A class is fitted on all of its systems together, and its figures serve devices without a table too; a
system that they do not fit gets figures of its own in `[gpu.<slug>]`. What no table says stays as it is.
Checked by: unit/test_kernels_benchmark.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.kernel_fit.fits import FEWEST, fit_curve, fit_tables, plain
from benchmarks.kernel_fit.predict import TABLE_KERNEL, errors, predicted, size_classes
from benchmarks.kernel_fit.tables import Table
from memcalc.inputs.profiles import read_toml
from memcalc.inputs.rates import CLASSES, OTHER, merged, rates_from
from memcalc.inputs.toml_text import to_toml

REFERENCE: Final = "https://github.com/ai-dynamo/aiconfigurator (Apache-2.0), kernel tables"
#: Classes whose tables of attention are of FlashAttention-2's kernels: those figures are flash's too.
SERVED_BY_FLASH: Final = ("default-ampere", "default-ada")
#: A system gets figures of its own where those of its class are off by more than this in the mean, or
#: their mean error is so many times that of its own.
OWN_FROM_BIAS: Final = 0.01
OWN_FROM: Final = 1.1
HEAD: Final = """\
# Default calibration: shares of a device's own datasheet figures; s, bytes, FLOPs.
# Formulas, sources and how to fit anew: docs/kernels.md. Tables with a `source` are assumed, not fitted.
# errors: predicted over measured, less 1, on shapes that no fit has seen; plain: of a plain fit there.
"""


def class_of(table: Table) -> str:
    """The class of default calibrations that a system belongs to."""
    return CLASSES.get(table.gpu.architecture, OTHER)


def refitted(raw: Mapping[str, Any], tables: Sequence[Table]) -> dict[str, Any]:
    """A calibration's content with everything that tables of its class say, errors included."""
    base = _without_own(raw, tables)
    found: dict[str, Any] = {}
    for (form, word), group in _groups(tables).items():
        if form == "collectives":
            for link, members in _by_link(group).items():
                found = merged(found, _collectives(base, link, word, members))
            continue
        found = merged(found, fit_tables(group, base))
        for table in group if len(group) > 1 else ():
            fitted = fit_tables([table], merged(base, found), is_class=False)
            own = {"gpu": {table.gpu.slug: fitted}}
            if _is_off(table, merged(base, found), merged(merged(base, found), own)):
                found = merged(found, own)
    if raw["name"] in SERVED_BY_FLASH and "attention" in found:
        found["attention"]["flash"] = dict(found["attention"][TABLE_KERNEL])
    for name in ("link", "pcie"):
        found = merged(found, {name: _plain_line(found.get(name, {}))})
    whole = merged(base, found)
    slugs = {table.gpu.slug for table in tables if table.form == "gemm"}
    whole |= {"fitted_on": sorted(slugs or raw["fitted_on"]), "reference": REFERENCE}
    whole["verified"] = bool(whole["fitted_on"])
    new = scores(whole, tables)
    given = {(row["form"], row.get("what")) for row in new}
    kept = [row for row in raw.get("errors", ()) if (row["form"], row.get("what")) not in given]
    return {**whole, "errors": kept + new}


def scores(raw: Mapping[str, Any], tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Errors on the rows held out, by system, word and size.

    plain_mean_abs: what a plain fit gets on the same; class_mean_abs: what the figures of the whole class
    get, where the system has its own.
    """
    found = []
    for table in tables:
        guess = predicted(table, rates_from(table.gpu, raw, "fit"))
        simple = plain(table)
        of_all = predicted(table, rates_from(table.gpu, _without_own(raw, [table]), "fit"))
        rows = table.is_sound() & table.is_held_out()
        for name, of_class in size_classes(table).items():
            chosen = rows & of_class
            if not chosen.any():
                continue
            ours = errors(guess[chosen], table.seconds[chosen])
            other = errors(simple[chosen], table.seconds[chosen])
            whole = errors(of_all[chosen], table.seconds[chosen])
            head = {"form": table.form, "system": table.system, "what": table.word, "sizes": name}
            figures = {key: _rounded(value) for key, value in ours._asdict().items()}
            figures["plain_mean_abs"] = _rounded(other.mean_abs)
            if whole.mean_abs != ours.mean_abs:
                figures["class_mean_abs"] = _rounded(whole.mean_abs)
            found.append({**head, **figures})
    return [{k: v for k, v in row.items() if v != ""} for row in found]


def write(path: Path, raw: Mapping[str, Any]) -> None:
    """Write a calibration's file; the same content gives the same bytes."""
    path.write_text(HEAD + to_toml(raw), encoding="utf-8")


def load(folder: Path, name: str) -> dict[str, Any]:
    """The content of the class's file in this folder."""
    return read_toml(folder / f"default-{name}.toml")


def _without_own(raw: Mapping[str, Any], tables: Sequence[Table]) -> dict[str, Any]:
    """The calibration without what was fitted to single systems of what these tables are of."""
    paths = set()
    for form, word in {(table.form, table.word) for table in tables}:
        tops = ("link", "pcie") if form == "collectives" else (form,)
        inner = TABLE_KERNEL if form == "attention" else word
        paths |= {(top, inner) if inner else (top,) for top in tops}
    own = {slug: _without(table, paths) for slug, table in raw.get("gpu", {}).items()}
    return {**raw, "gpu": {slug: table for slug, table in own.items() if table}}


def _without(
    own: Mapping[str, Any], paths: Collection[tuple[str, ...]], at: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A table less what lies at these paths, but for tables that name a source: those are no fit."""
    kept = {}
    for key, value in own.items():
        here = (*at, key)
        is_table = isinstance(value, Mapping)
        if here in paths and not (is_table and "source" in value):
            continue
        inner = _without(value, paths, here) if is_table else value
        if inner != {}:
            kept[key] = inner
    return kept


def _groups(tables: Sequence[Table]) -> dict[tuple[str, str], list[Table]]:
    found: dict[tuple[str, str], list[Table]] = {}
    for table in tables:
        rows = table.is_sound() & ~table.is_held_out()
        if rows.sum() >= FEWEST:
            found.setdefault((table.form, table.word), []).append(table)
    return found


def _by_link(tables: Sequence[Table]) -> dict[str, list[Table]]:
    found: dict[str, list[Table]] = {}
    for table in tables:
        over_host = (table.gpu.link or "").lower().startswith("pcie")
        found.setdefault("pcie" if over_host else "link", []).append(table)
    return found


def _is_off(table: Table, raw: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether a system needs figures of its own: by the rows fitted on, the class's do worse."""
    rows = table.part(table.is_sound() & ~table.is_held_out())
    of_class, of_own = (
        errors(predicted(rows, rates_from(table.gpu, content, "fit")), rows.seconds)
        for content in (raw, own)
    )
    return abs(of_class.bias) > OWN_FROM_BIAS or of_class.mean_abs > OWN_FROM * of_own.mean_abs


def _collectives(
    base: Mapping[str, Any], link: str, word: str, tables: Sequence[Table]
) -> dict[str, Any]:
    """Lines of a collective for a class, and of their own for systems that the class's are off for."""
    found: dict[str, Any] = {link: {word: _curves(tables)}}
    for table in tables if len(tables) > 1 else ():
        rows = _curves([table])
        rows += [row for row in found[link][word] if row["ranks"] not in [r["ranks"] for r in rows]]
        own = {"gpu": {table.gpu.slug: {link: {word: rows}}}}
        if _is_off(table, merged(base, found), merged(merged(base, found), own)):
            found = merged(found, own)
    return found


def _curves(tables: Sequence[Table]) -> list[dict[str, float]]:
    ranks = sorted({int(n) for table in tables for n in np.unique(table.sizes["num_gpus"])})
    return [fit_curve(tables, n) for n in ranks]


def _plain_line(curves: Mapping[str, Any]) -> dict[str, float]:
    """What a message between two takes: an all-gather's start among two, and its rate among most."""
    rows = curves.get("all_gather")
    if not rows:
        return {}
    return {"alpha_s": rows[0]["small_s"], "share": rows[-1]["large_share"]}


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else round(value, 4)

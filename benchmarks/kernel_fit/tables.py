"""Tables of measured kernels as arrays: four forms of CSV, each with the columns of `FORMS`.

Every row names a system, sizes, and `latency_ms_median` in milliseconds; `latency_ms_min` and
`latency_ms_max`, the least and the most over repeated collections, may be there. One table is one
kind of kernel on one system and dtype, sizes as floating-point arrays, seconds beside them.

A row is held out of a fit by the hash of its sizes, so that a shape is held out on every system.
`is_sound` leaves out what cannot be the kernel the columns say: medians of attention include
windowed kernels in some collections, faster than the device's datasheet allows for the whole sequence.
Checked by: unit/test_kernels_benchmark.py.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from memcalc.errors import ConfigError, unknown
from memcalc.inputs.hardware import Gpu, load_gpu

#: Systems of the published tables -> profile; other names are read as memcalc reads a GPU's.
SYSTEMS: Final = {
    "a100_sxm": "a100-80gb", "h100_sxm": "h100-80gb", "h200_sxm": "h200-141gb",
    "b200_sxm": "b200-180gb", "b300_sxm": "b300-288gb", "gb200": "gb200-186gb",
    "gb300": "gb300-288gb", "l40s": "l40s", "rtx_pro_6000_server": "rtx-pro-6000",
}  # fmt: skip
HEADS: Final = ("num_heads", "num_key_value_heads", "head_dim")
#: Kind of table -> columns of sizes.
FORMS: Final = {
    "gemm": ("m", "n", "k"),
    "attention": ("batch_size", "seq", *HEADS),
    "decode": ("batch_size", "context", *HEADS),
    "collectives": ("num_gpus", "message_bytes"),
}
#: Kind of table -> column of words beside the system.
WORDS: Final = {"gemm": "dtype", "collectives": "collective"}
COLLECTIVES: Final = {"alltoall": "all_to_all"}
TIME: Final = "latency_ms_median"
#: Widest span of collections, most over least, of attention with heads other than 128 wide.
WIDEST_SPAN: Final = 3.0


class Table(NamedTuple):
    """Measured kernels of one kind, system and word (dtype or collective): sizes and seconds."""

    form: str
    system: str
    word: str
    gpu: Gpu
    sizes: dict[str, np.ndarray]
    seconds: np.ndarray
    span: np.ndarray  # most over least of the collections, 1 where not stated

    def part(self, rows: np.ndarray) -> Table:
        """The table with some of its rows."""
        sizes = {name: values[rows] for name, values in self.sizes.items()}
        return self._replace(sizes=sizes, seconds=self.seconds[rows], span=self.span[rows])

    def flops(self) -> np.ndarray:
        """FLOPs of a product, or of attention that sees half of the scores."""
        s = self.sizes
        if self.form == "gemm":
            return 2 * s["m"] * s["n"] * s["k"]
        if self.form == "decode":
            return 4 * s["batch_size"] * s["num_heads"] * s["context"] * s["head_dim"]
        return 2 * s["batch_size"] * s["num_heads"] * s["seq"] ** 2 * s["head_dim"]

    def cache_bytes(self) -> np.ndarray:
        """Bytes of keys and values, 16 bits each, that decode attention reads."""
        s = self.sizes
        return 4 * s["batch_size"] * s["num_key_value_heads"] * s["context"] * s["head_dim"]

    def is_held_out(self) -> np.ndarray:
        """Which rows are not fitted on: half of all shapes, by a hash of their sizes.

        Of collectives every other power of two, another half for each number of ranks.
        """
        if self.form == "collectives":
            octave = np.round(np.log2(self.sizes["message_bytes"]))
            return (octave + np.round(np.log2(self.sizes["num_gpus"]))) % 2 == 1
        columns = [self.sizes[name] for name in FORMS[self.form]]
        keys = ("x".join(str(int(v)) for v in row) for row in zip(*columns, strict=True))
        return np.array([hashlib.sha256(k.encode()).digest()[-1] % 2 == 1 for k in keys], bool)

    def is_sound(self) -> np.ndarray:
        """Which rows can be the kernel that their columns say."""
        if self.form in ("gemm", "collectives"):
            return np.ones(len(self.seconds), bool)
        peak = self.gpu.peak_flops_per_s["bf16"]
        sound = self.flops() / self.seconds < peak
        if self.form == "decode":
            sound &= self.cache_bytes() / self.seconds < self.gpu.memory_bandwidth_bytes_per_s
        width = self.sizes["head_dim"]
        sound &= (width == 64) | (width == 128) | (width == 256)
        return sound & ((width == 128) | (self.span <= WIDEST_SPAN))


def read_tables(path: Path, form: str) -> list[Table]:
    """The tables of one file, by system and word in order of appearance.

    Raises ConfigError, in one line, when the file is not of this form.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{form} table: '{path}' cannot be read ({error})") from None
    needed = ["system", *FORMS[form], TIME, *([WORDS[form]] if form in WORDS else [])]
    missing = [column for column in needed if column not in columns]
    if missing or not rows:
        what = f"no column {missing[0]}" if missing else "no rows"
        raise ConfigError(f"{form} table: '{path}': got {what}; rule: {', '.join(needed)}")
    groups: dict[tuple[str, str], list[tuple[int, dict[str, str]]]] = {}
    for line, row in enumerate(rows, 2):
        word = row.get(WORDS.get(form, ""), "") or ""
        groups.setdefault((row["system"] or "", word), []).append((line, row))
    return [_table(path, form, key, group) for key, group in groups.items()]


def read_all(files: Mapping[str, Path | None]) -> list[Table]:
    """The tables of all files given, by kind of table; ConfigError where there is none."""
    found = [t for form, path in files.items() if path for t in read_tables(path, form)]
    if not found:
        raise ConfigError(f"tables: got none; rule: at least one of --{', --'.join(FORMS)}")
    return found


def _table(
    path: Path, form: str, key: tuple[str, str], rows: list[tuple[int, dict[str, str]]]
) -> Table:
    system, word = key
    where = f"{form} table: '{path}': line {rows[0][0]}"
    try:
        gpu = load_gpu(SYSTEMS.get(system, system))[0]
    except ConfigError as error:
        raise ConfigError(f"{where}: system: {str(error).removeprefix('gpu: ')}") from None
    valid = ("all_gather", "all_reduce", "reduce_scatter", "alltoall", "all_to_all")
    if form == "collectives" and word not in valid:
        raise unknown(f"{where}: collective", word, valid)
    sizes = {name: _column(path, form, rows, name) for name in FORMS[form]}
    seconds = _column(path, form, rows, TIME) / 1e3
    span = np.ones(len(rows))
    if all(row.get("latency_ms_min") and row.get("latency_ms_max") for _, row in rows):
        least, most = (_column(path, form, rows, f"latency_ms_{end}") for end in ("min", "max"))
        span = most / least
    return Table(form, system, COLLECTIVES.get(word, word), gpu, sizes, seconds, span)


def _column(path: Path, form: str, rows: list[tuple[int, dict[str, str]]], name: str) -> np.ndarray:
    found = []
    for line, row in rows:
        try:
            value = float(row[name] or "")
        except (TypeError, ValueError):
            value = math.nan
        if not 0 < value < 1e18 or (name in FORMS[form] and value != int(value)):
            rule = "a whole number above 0" if name in FORMS[form] else "milliseconds above 0"
            raise ConfigError(
                f"{form} table: '{path}': line {line}: {name}: got {row[name]!r}; rule: {rule}"
            )
        found.append(value)
    return np.array(found)

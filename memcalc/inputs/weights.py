"""Weight formats: how a matrix is stored when it is not one number an element, from profiles/weights.

A file of that folder is a family (bitsandbytes, gptq, gguf, ...) with packings and formats. A packing
says what tensors stand for one matrix (out, in): each has some bytes for every block of elements. A
format says which packing the matrices of each role get; a role it does not name stays in the dtype the
model was loaded in. Nothing here counts a model's parameters: `engine/quantised.py` lays a format over
the ledger's leaves.
Checked by: unit/test_weight_formats.py, oracle/test_bitsandbytes.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from memcalc.errors import ConfigError, unknown
from memcalc.inputs.files import check_shape
from memcalc.inputs.profiles import (
    normal_name,
    profile_hash,
    profile_names,
    profiles_dir,
    read_toml,
)

#: What a tensor of a model may be to a format.
ROLES: Final = (
    "linear", "experts", "expert-vectors", "router", "embedding", "position", "head", "vector",
)  # fmt: skip
#: How a product with a packed matrix runs.
#: dense: as any; dequantise: the matrix is written out in the input's dtype first; int8: LLM.int8's
#: products; fused: the kernel unpacks as it reads.
KERNELS: Final = ("dense", "dequantise", "int8", "fused")
#: Where a part of a packed matrix is found.
_STORED: Final = ("both", "file", "memory")
#: Conditions of a rule; see engine/quantised_mixtures.py.
CONDITIONS: Final = (
    "always", "more-bits", "first-eighth", "first-sixteenth", "below-2", "below-4", "gqa-4",
    "eight-experts", "seventy-billion", "t5",
)  # fmt: skip
_SHARED: Final = {
    "kernel": str, "source": str, "verified": str, "trains_adapters": bool, "apart": bool,
    "alignment": int, "families": [str],
}  # fmt: skip
_FILE: Final = {**_SHARED, "name": str, "aliases": dict, "packings": dict, "formats": dict}
_PACKING: Final = {"parts": [dict], "multiple": [int], "fallback": str, "source": str}
_RULE: Final = {"ops": [str], "when": str, "packing": str}
_FORMAT: Final = {**_SHARED, "description": str, "roles": dict, "rules": [_RULE], "dtype": str}
#: A rule's packing that leaves a matrix as it is.
KEEP: Final = "keep"


class Part(NamedTuple):
    """One tensor of a packed matrix: `size` bytes for every block of it.

    block: (rows, columns) of a block, 0 for all of them, where a block that is cut counts whole; or a
    number of elements in the order of storage, rows one after the other.
    """

    name: str
    block: tuple[int, int] | int
    size: int
    stored: str = "both"

    def bytes_of(self, rows: int, columns: int) -> int:
        """Bytes of this part for one matrix."""
        if isinstance(self.block, int):
            return -(-rows * columns // self.block) * self.size
        high, wide = self.block
        return -(-rows // (high or rows)) * -(-columns // (wide or columns)) * self.size


class Packing(NamedTuple):
    """How one matrix is stored. multiple: what its rows and columns must be multiples of.

    fallback: the packing of a matrix that does not fit; None: such a matrix is refused.
    """

    name: str
    parts: tuple[Part, ...]
    multiple: tuple[int, int] = (1, 1)
    fallback: str | None = None

    def bytes_of(self, rows: int, columns: int, stored: str) -> int:
        """Bytes of one matrix in memory or in a file."""
        return sum(p.bytes_of(rows, columns) for p in self.parts if p.stored in ("both", stored))

    def bits(self, rows: int, columns: int) -> float:
        """Bits in memory for each element of a matrix."""
        return 8 * self.bytes_of(rows, columns, "memory") / (rows * columns)

    def fits(self, rows: int, columns: int) -> bool:
        """Whether a matrix has the multiples this packing needs."""
        return not (rows % self.multiple[0] or columns % self.multiple[1])


class Rule(NamedTuple):
    """An exception of a mixture: operators of the ledger that get another packing under a condition."""

    ops: tuple[str, ...]
    when: str
    packing: str


class WeightFormat(NamedTuple):
    """A way to store a model's weights. roles: (role, packing) of what is packed.

    rules come before roles, the first that holds counts. families: values of model_type it is defined
    for, empty for any. apart: fused matrices of experts are stored as several, one of gate and one of up
    for each expert. alignment: bytes a tensor of the file begins at a multiple of.
    """

    name: str
    description: str
    kernel: str
    packings: tuple[Packing, ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    rules: tuple[Rule, ...] = ()
    families: tuple[str, ...] = ()
    apart: bool = False
    alignment: int = 1
    dtype: str | None = None
    trains_adapters: bool = True
    source: str = ""
    verified: str = ""
    profile_hash: str = ""

    @property
    def is_dense(self) -> bool:
        """Whether every tensor is stored as plain numbers of `dtype`."""
        return self.dtype is not None

    def bits(self, rows: int, columns: int) -> float:
        """Bits in memory for each element of a linear's matrix, or an expert's where no linear is packed."""
        if self.dtype is not None:
            return 32 if self.dtype == "fp32" else 16
        roles = dict(self.roles)
        return self.packing(roles.get("linear", roles.get("experts", ""))).bits(rows, columns)

    def packing(self, name: str) -> Packing:
        """The packing of this name."""
        return next(packing for packing in self.packings if packing.name == name)


def weight_names() -> list[str]:
    """The names of all formats, family by family. Checked by: unit/test_weight_formats.py."""
    return [name for stem in profile_names("weights") for name in read_family(stem)]


def load_weights(name: str) -> WeightFormat:
    """The format of a name or alias, letter case ignored; ConfigError names the nearest."""
    wanted = normal_name(name) if isinstance(name, str) else ""
    known: list[str] = []
    for stem in profile_names("weights"):
        for label, found in read_family(stem).items():
            if normal_name(label) == wanted:
                return found
            known.append(label)
        for label, meant in _aliases(stem).items():
            if normal_name(label) == wanted:
                return read_family(stem)[meant]
    raise unknown("weights", str(name), known)


@lru_cache(maxsize=32)
def read_family(stem: str) -> dict[str, WeightFormat]:
    """The formats of one file of profiles/weights, by name; ConfigError says what is wrong with it."""
    return formats_of(profiles_dir() / "weights" / f"{stem}.toml")


def _aliases(stem: str) -> dict[str, str]:
    raw = read_toml(profiles_dir() / "weights" / f"{stem}.toml")
    return {str(label): str(meant) for label, meant in raw.get("aliases", {}).items()}


def formats_of(path: Path) -> dict[str, WeightFormat]:
    """The formats a file states, each checked; ConfigError in one line otherwise."""
    raw = read_toml(path)
    where = path.name
    check_shape(raw, _FILE, where)
    _only(raw, {"name", "aliases", "kernel", "source", "verified", "trains_adapters", "apart",
                "alignment", "families", "packings", "formats"}, where)  # fmt: skip
    packings = {
        name: _packing(name, entry, f"{where}: packings.{name}")
        for name, entry in raw.get("packings", {}).items()
    }
    for packing in packings.values():
        if packing.fallback is not None and packing.fallback not in packings:
            raise ConfigError(
                f"{where}: {packing.name}: fallback {packing.fallback!r} is no packing"
            )
    digest = profile_hash(path)
    formats = raw.get("formats", {})
    if not formats:
        raise ConfigError(f"{where}: formats: got none; rule: at least one")
    return {
        name: _format(name, entry, _shared(raw), packings, f"{where}: {name}")._replace(
            profile_hash=digest
        )
        for name, entry in formats.items()
    }


def _shared(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a family states for all of its formats."""
    return {key: raw[key] for key in _SHARED if key in raw}


def _format(
    name: str, own: Any, shared: Mapping[str, Any], packings: Mapping[str, Packing], where: str
) -> WeightFormat:
    check_shape(own, _FORMAT, where)
    raw = {**shared, **own}
    _only(raw, {"description", "kernel", "source", "verified", "trains_adapters", "apart",
                "alignment", "families", "roles", "rules", "dtype"}, where)  # fmt: skip
    for key in ("description", "kernel", "source", "verified"):
        if not isinstance(raw.get(key), str):
            raise ConfigError(f"{where}: {key}: got {raw.get(key)!r}; rule: a string")
    if raw["kernel"] not in KERNELS:
        raise unknown(f"{where}: kernel", raw["kernel"], KERNELS)
    roles = dict(raw.get("roles", {}))
    for role, packing in roles.items():
        check_shape(packing, str, f"{where}: roles.{role}")
        if role not in ROLES:
            raise unknown(f"{where}: role", role, ROLES)
        _known(packing, packings, where)
    if not roles and "dtype" not in raw:
        raise ConfigError(f"{where}: rule: roles, or a dtype for all tensors")
    return WeightFormat(
        name=name,
        description=raw["description"],
        kernel=raw["kernel"],
        packings=tuple(packings.values()),
        roles=tuple(roles.items()),
        rules=tuple(_rule(entry, packings, where) for entry in raw.get("rules", [])),
        families=tuple(raw.get("families", ())),
        apart=bool(raw.get("apart", False)),
        alignment=_whole(raw.get("alignment", 1), f"{where}: alignment"),
        dtype=raw.get("dtype"),
        trains_adapters=bool(raw.get("trains_adapters", True)),
        source=raw["source"],
        verified=raw["verified"],
    )


def _rule(raw: Mapping[str, Any], packings: Mapping[str, Packing], where: str) -> Rule:
    _only(raw, {"ops", "when", "packing"}, f"{where}: rules")
    when = raw.get("when", "always")
    if when not in CONDITIONS:
        raise unknown(f"{where}: when", str(when), CONDITIONS)
    if raw.get("packing") != KEEP:
        _known(raw.get("packing"), packings, where)
    return Rule(tuple(raw.get("ops", ())), when, raw["packing"])


def _packing(name: str, raw: Any, where: str) -> Packing:
    check_shape(raw, _PACKING, where)
    _only(raw, {"parts", "multiple", "fallback", "source"}, where)
    if not isinstance(raw.get("source"), str) or not raw.get("parts"):
        raise ConfigError(f"{where}: rule: parts and a source")
    parts = tuple(_part(entry, where) for entry in raw["parts"])
    if len(raw.get("multiple", (1, 1))) != 2:
        raise ConfigError(f"{where}: multiple: got {raw['multiple']!r}; rule: rows and columns")
    rows, columns = raw.get("multiple", (1, 1))
    multiple = (_whole(rows, f"{where}: multiple"), _whole(columns, f"{where}: multiple"))
    return Packing(name, parts, multiple, raw.get("fallback"))


def _part(raw: Mapping[str, Any], where: str) -> Part:
    _only(raw, {"name", "block", "bytes", "stored"}, where)
    block = raw.get("block")
    if isinstance(block, list) and len(block) == 2:
        shape: tuple[int, int] | int = (
            _whole(block[0], f"{where}: block", 0), _whole(block[1], f"{where}: block", 0),
        )  # fmt: skip
    else:
        shape = _whole(block, f"{where}: block")
    stored = raw.get("stored", "both")
    if stored not in _STORED:
        raise unknown(f"{where}: stored", str(stored), _STORED)
    return Part(str(raw.get("name")), shape, _whole(raw.get("bytes"), f"{where}: bytes"), stored)


def _known(packing: object, packings: Mapping[str, Packing], where: str) -> None:
    if packing not in packings:
        raise unknown(f"{where}: packing", str(packing), packings)


def _whole(value: object, where: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{where}: got {value!r}; rule: a whole number, at least {least}")
    return value


def _only(raw: Mapping[str, Any], keys: set[str], where: str) -> None:
    for key in raw:
        if key not in keys:
            raise unknown(where, key, sorted(keys))

"""Hostile values: numbers, words and bytes that a careless reader trips over.

Everything is drawn from a `random.Random`, so that a seed, hypothesis (`st.randoms`) and atheris
(`byte_random.py`) can each be what decides.
"""

from __future__ import annotations

import random
from typing import Any

Random = random.Random

#: Texts where a number, a name or a path belongs.
WORDS: tuple[str, ...] = (
    "", " ", "\0", "\n", "\t", "-", "--", "=", ",", ",,", "..", "...", ":", "*", "none", "null", "true",
    "nan", "inf", "-inf", "-1", "0", "00", "1e400", "1e30", "1e-400", "0x10", "1_000", "1,000", "0.5",
    "9" * 30, "9" * 6000, "8k", "8K", "1T", "16k..1k", "1..8", "1..10**9", "1..1000000000", "1k..16k*2",
    "1..8:0", "1..8*1", "1..8*nan", "1..", "..8", "80GB", "80GiB", "80", "-80GiB", "1e9TB", "\u00b2",
    "\u0661\u0662", "\u00bd", "\u2460", "\u202e", "\ufeff", "\ud800", "\udcff", "\U0001f680", "\x1b[31m",
    "a\nb", "a\rb", "[red]x[/red]", "[/]", "[/x", "[link=http://a]x[/link]", "{0}", "%s%n", "$(id)",
    "`id`", "'", '"', "\\", "../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/stdin", ".", "/",
    "~", "~nobody-here/x", "//", "a/../b", "models--a--b", "org/model", "./", "x" * 300, "x" * 5000,
    "=1+1", "+cmd", "@SUM(A1)", "-2+3", "full:", "full:0", "full:99999", "freeze:1", "gguf:", "7,8",
    "1,1,1,1", "1," * 2000, "local", "auto", "default", "optimal", "cuda:99", "cpu", "True", "1 2",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 8, 64, 127, 1000, 2**31, 2**31 - 1, 2**31 + 1, 2**53, 2**63, 2**63 + 1, 2**64,
    10**18, 10**30, 10**400, -(10**30), 0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 1e-300, 1e300, 1e308, 5e-324,
)  # fmt: skip
#: Keys that other programs act upon, and names of attributes.
KEYS: tuple[str, ...] = (
    "auto_map", "trust_remote_code", "__class__", "__proto__", "self", "name", "config", "notes", "", "a.b",
    "hidden_size", "num_hidden_layers", "vocab_size", "model_type", "quantization_config", "rope_scaling",
    "layer_types", "text_config", "moe", "mla", "value", "source", "verified", "schema", "setup", "kind",
    "\x1b[31m", "a\nb", "[/]", "=1", "x" * 3000, "\u202e",
)  # fmt: skip


def word(r: Random) -> str:
    """A text, mostly out of the list, else characters drawn one by one."""
    if r.random() < 0.8:
        return r.choice(WORDS)
    if r.random() < 0.5:
        return "".join(chr(r.randrange(32, 127)) for _ in range(r.randrange(12)))
    return "".join(chr(r.choice((r.randrange(0x20), r.randrange(0xD800)))) for _ in range(4))


def number(r: Random) -> Any:
    """A number, whole or not, of any size."""
    kind = r.random()
    if kind < 0.6:
        return r.choice(NUMBERS)
    if kind < 0.85:
        return r.randrange(-4, 5000)
    return r.uniform(-2, 100)


def value(r: Random, depth: int = 2) -> Any:
    """Anything that JSON and TOML can hold, nulls aside from TOML."""
    kind = r.random()
    if kind < 0.4:
        return number(r)
    if kind < 0.65:
        return word(r)
    if kind < 0.75:
        return r.random() < 0.5
    if kind < 0.8:
        return None
    if depth == 0:
        return []
    if kind < 0.9:
        return [value(r, depth - 1) for _ in range(r.choice((0, 1, 2, 3, 40)))]
    return {r.choice(KEYS): value(r, depth - 1) for _ in range(r.randrange(3))}


def changed(r: Random, tree: Any, times: int | None = None) -> Any:
    """A copy of a tree of mappings and lists with some of its places changed."""
    found = _copied(tree)
    for _ in range(times or r.choice((1, 1, 1, 2, 3, 8))):
        _change(r, found)
    return found


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copied(item) for key, item in tree.items()}
    return [_copied(item) for item in tree] if isinstance(tree, list) else tree


def _change(r: Random, tree: Any) -> None:
    """Replace, drop or add one entry, going down a random way."""
    at = tree
    for _ in range(8):
        inner = [key for key, item in _entries(at) if isinstance(item, (dict, list)) and item]
        if not inner or r.random() < 0.35:
            break
        at = at[r.choice(inner)]
    entries = [key for key, _ in _entries(at)]
    if isinstance(at, dict) and (not entries or r.random() < 0.15):
        at[r.choice(KEYS)] = value(r)
    elif entries:
        key = r.choice(entries)
        if r.random() < 0.2:
            del at[key]
        else:
            at[key] = _near(r, at[key])


def _entries(tree: Any) -> list[tuple[Any, Any]]:
    return list(tree.items() if isinstance(tree, dict) else enumerate(tree))


def _near(r: Random, old: Any) -> Any:
    """Another value, half the time of the kind that stood there."""
    if r.random() < 0.5 and isinstance(old, (int, float)) and not isinstance(old, bool):
        return r.choice((old * 2, old + 1, -old, 1, number(r)))
    return value(r)


def broken(r: Random, data: bytes) -> bytes:
    """Text with some of its bytes wrong: cut, doubled, replaced, prefixed, in another encoding."""
    kind = r.randrange(8)
    if kind == 0:
        return data[: r.randrange(len(data) + 1)]
    if kind == 1:
        at = r.randrange(len(data) + 1)
        return (
            data[:at]
            + r.choice((b"\0", b"\xff", b"\xed\xa0\x80", b"[" * 3000, b"{", b'"'))
            + data[at:]
        )
    if kind == 2:
        return (
            r.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PK\x03\x04", b"\n" * 9)) + data
        )
    if kind == 3:
        return data.decode("utf-8", "replace").encode(
            r.choice(("utf-16", "utf-32", "utf-7")), "replace"
        )
    if kind == 4:
        return data + data
    if kind == 5:
        return b'{"a":' * 4000 if r.random() < 0.5 else b"a = " + b"[" * 4000
    if kind == 6:
        start = r.randrange(len(data) + 1)
        return data[start:] + data[:start]
    at = r.randrange(len(data) + 1)
    return data[:at] + r.randbytes(4) + data[at + 4 :]

"""The targets: what a fuzzer writes into files and says on the command line.

Each function draws one case from a Random. Models are a few layers deep, so that a case takes
milliseconds; commands that run PyTorch go as far as their argument checks (see `words.py`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.fuzz import seeds
from tests.fuzz.oracle import Case
from tests.fuzz.values import Random, broken, changed, value, word
from tests.fuzz.words import words_case

TINY: Final = json.dumps(seeds.TINY).encode()
_JSON: Final = ["--json"]


def _said(r: Random, data: bytes, share: float = 0.15) -> bytes:
    """Sometimes the text itself is broken, not what it says."""
    return broken(r, data) if r.random() < share else data


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "replace")


def config(r: Random) -> Case:
    """A config.json with wrong values, keys and bytes, read by the commands that take MODEL."""
    tree = changed(r, r.choice(seeds.configs()))
    ways = (
        ["estimate", "config.json", *_JSON], ["estimate", "config.json", "--gpu", "h100-80gb"],
        ["explain", "config.json"], ["infer", "config.json", *_JSON], ["estimate", "."],
        ["estimate", "config.json", "--seq", "64", "--peft", "lora"],
        ["estimate", "config.json", "--seq", "64", "--gpus", "4", "--fsdp", *_JSON],
        ["export", "config.json", "--format", "megatron", "--stack", "megatron"],
    )  # fmt: skip
    text = _json(tree)
    if r.random() < 0.05:  # integers that Python itself does not turn into text
        text = text.replace(b"64", b"9" * r.choice((400, 4300, 100_000)), 1)
    if r.random() < 0.05:
        text = b'{"hidden_size": 3, ' + text[1:]
    return Case(list(r.choice(ways)), {"config.json": _said(r, text)})


def model(r: Random) -> Case:
    """A model TOML."""
    text = seeds.toml(changed(r, r.choice(seeds.models()))).encode()
    ways = (
        ["estimate", "m.toml", *_JSON], ["estimate", "m.toml", "--seq", "64"], ["infer", "m.toml"],
        ["show", "m.toml"], ["diff", "m.toml", "m.toml --seq 8"],
    )  # fmt: skip
    return Case(list(r.choice(ways)), {"m.toml": _said(r, text)})


def device(r: Random) -> Case:
    """A GPU or cluster TOML."""
    kind, names = r.choice((("gpus", ("h100-80gb", "mi300x", "m4-max", "t4")),
                            ("clusters", ("dgx-h100", "gb200-nvl72", "4x-rtx-4090-pcie"))))  # fmt: skip
    text = seeds.toml(changed(r, r.choice(seeds.profiles(kind, *names)))).encode()
    flag = "--gpu" if kind == "gpus" else "--cluster"
    ways = (
        ["estimate", "config.json", flag, "d.toml", *_JSON],
        ["estimate", "config.json", flag, "d.toml"],
        ["estimate", "config.json", flag, "d.toml", "--gpus", "16", "--tp", "2"],
        ["infer", "config.json", flag, "d.toml"],
        ["compare", "config.json", flag, "d.toml", "--csv"],
        ["show", kind, "d.toml"], ["show", "d.toml", *_JSON],
        ["train-time", "config.json", flag, "d.toml", "--tokens", "1B"],
    )  # fmt: skip
    return Case(list(r.choice(ways)), {"d.toml": _said(r, text), "config.json": TINY})


def stack(r: Random) -> Case:
    """A training stack of the user's own."""
    names = ("torch", "torchtitan", "megatron", "deepspeed", "nanotron", "fsdp1", "litgpt")
    base = r.choice(names)
    shipped = seeds.profiles("stacks", base)[0]
    tree = {"base": r.choice(names) if r.random() < 0.1 else base}
    for table in ("kernels", "parallel"):
        kept = [item for item in shipped[table].items() if r.random() < 0.5]
        tree |= {table: {key: r.choice((entry, entry["value"])) for key, entry in kept}}
    text = seeds.toml(changed(r, tree) if r.random() < 0.7 else tree).encode()
    begin = ["estimate", "config.json", "--gpu", "h100-80gb", "--stack", "s.toml"]
    ways = (
        [*begin, *_JSON], begin, [*begin, "--gpus", "4", "--tp", "2"], [*begin, "--compile"],
        [*begin, "--gpus", "4", "--pp", "2", "--grad-accum", "2"], [*begin, "--gpus", "2", "--zero", "1"],
        [*begin, "--set", "stack.reduce_bucket_size=1000"], ["show", "s.toml"],
        ["show", "stacks", "s.toml", *_JSON], ["advise", *begin[1:]],
        ["search", *begin[1:], "--gpus", "2", "--global-batch", "2"],
        ["export", "config.json", "--stack", "s.toml", "--format", "deepspeed"],
    )  # fmt: skip
    return Case(list(r.choice(ways)), {"s.toml": _said(r, text), "config.json": TINY})


def calibration(r: Random) -> Case:
    """A calibration, measured or default."""
    if r.random() < 0.5:
        tree = seeds.measured_calibration()
    else:
        tree = r.choice(
            seeds.profiles("calibrations", "default-hopper", "default-cpu", "default-volta")
        )
    text = seeds.toml(changed(r, tree)).encode()
    ways = (
        ["estimate", "config.json", "--gpu", "h100-80gb", "--calibration", "c.toml", *_JSON],
        ["estimate", "config.json", "--gpu", "h100-80gb", "--calibration", "c.toml", "--gpus", "2"],
        ["infer", "config.json", "--gpu", "h100-80gb", "--calibration", "c.toml"],
        ["show", "calibrations", "c.toml"],
    )  # fmt: skip
    return Case(list(r.choice(ways)), {"c.toml": _said(r, text), "config.json": TINY})


_RUN: Final[Mapping[str, Any]] = {
    "memcalc": "0.1.0", "model": {"name": "config.json", "layers": 2},
    "training": {"seq": 64, "micro-batch": "2", "precision": "bf16", "recompute": "full:1",
                 "grad-clip": True, "stack": "torch"},
    "parallelism": {"gpus": 4, "fsdp": True},
    "hardware": {"gpu": "h100-80gb", "reserve": "1GiB"}, "serving": {"batch": 4},
    "comparison": {"setup": ["--grad-clip"]},
}  # fmt: skip


def run_file(r: Random) -> Case:
    """A run file given with --config."""
    text = seeds.toml(changed(r, dict(_RUN))).encode()
    command = r.choice(
        ("estimate", "estimate", "explain", "compare", "train-time", "export", "mfu")
    )
    words = [command, "--config", "run.toml", *(["config.json"] if r.random() < 0.5 else [])]
    if command == "train-time":
        words += ["--tokens", "1B"]
    if command == "export":
        words += ["--format", r.choice(("deepspeed", "torchtitan", "megatron", "accelerate"))]
    if r.random() < 0.1:
        words += ["--save", "saved.toml"]
    return Case(words, {"run.toml": _said(r, text), "config.json": TINY})


def results(r: Random) -> Case:
    """Results and run files given to diff."""
    files = {
        name: _said(r, _json(changed(r, r.choice(seeds.estimates()))))
        for name in ("a.json", "b.json")
    }
    if r.random() < 0.2:
        return Case(["diff", "a.json", "config.json --seq 64"], {**files, "config.json": TINY})
    return Case(["diff", "a.json", "b.json", *(_JSON if r.random() < 0.3 else [])], files)


def records(r: Random) -> Case:
    """Records of measured runs, JSON lines, drawn by the charts that take them."""
    lines = [_json(changed(r, r.choice(seeds.records()))) for _ in range(r.choice((1, 1, 2)))]
    kind = r.choice(("timeline", "accuracy"))
    words = ["chart", kind, "--record", "r.jsonl", *r.choice((["--json"], ["--csv"], []))]
    return Case(words, {"r.jsonl": _said(r, b"\n".join(lines) + b"\n")})


def rows(r: Random) -> Case:
    """Rows of measured runs, CSV."""
    header, *body = seeds.rows()
    table = [list(header), *(list(r.choice(body)) for _ in range(r.choice((1, 1, 2))))]
    for _ in range(r.randrange(6)):
        line = r.choice(table)
        line[r.randrange(len(line))] = word(r) if r.random() < 0.6 else r.choice(r.choice(body))
    if r.random() < 0.1:
        r.choice(table).append(word(r))
    text = io.StringIO()
    csv.writer(text).writerows(table)
    words = ["accuracy", "--rows", "rows.csv", *r.choice(([], ["--json"], ["--csv"], ["--memory"]))]
    return Case(words, {"rows.csv": _said(r, text.getvalue().encode("utf-8", "replace"))})


def settings(r: Random) -> Case:
    """Settings files of other tools given to import."""
    name, data = r.choice(seeds.settings())
    words = ["import", name, "--model", "config.json"]
    if name.endswith(".json") and r.random() < 0.8:
        data = _json(changed(r, json.loads(data)))
    elif name.endswith(".toml") and r.random() < 0.8:
        import tomllib

        data = seeds.toml(changed(r, tomllib.loads(data.decode()))).encode()
    else:
        data = _lines(r, data)
    if name.endswith(".sh") and r.random() < 0.5:
        words[1] = " ".join(data.decode("utf-8", "replace").split())
    words += ["--format", r.choice(("deepspeed", "megatron", "accelerate", "torchtitan"))] if (
        r.random() < 0.15) else []  # fmt: skip
    return Case(words, {name: _said(r, data), "config.json": TINY})


def _lines(r: Random, data: bytes) -> bytes:
    """Some values of a text of lines replaced, some lines dropped or doubled."""
    lines = data.decode("utf-8").split("\n")
    for _ in range(r.choice((1, 1, 2, 4))):
        at = r.randrange(len(lines))
        head, sep, tail = lines[at].rpartition(" ")
        kind = r.random()
        if kind < 0.5:
            lines[at] = f"{head}{sep}{value(r, 1)}"
        elif kind < 0.6:
            lines[at] = f"{word(r)}{sep}{tail}"
        elif kind < 0.8:
            del lines[at]
        else:
            lines.insert(
                at, r.choice(("a: &x [*x]", "!!python/object/apply:os.system [id]", lines[at]))
            )
        lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "replace")


#: Target -> (its function, its share of a run).
TARGETS: Final[Mapping[str, tuple[Callable[[Random], Case], float]]] = {
    "config": (config, 0.24), "model": (model, 0.08), "device": (device, 0.1),
    "calibration": (calibration, 0.05), "stack": (stack, 0.05), "run_file": (run_file, 0.1),
    "results": (results, 0.06), "records": (records, 0.03), "rows": (rows, 0.04),
    "settings": (settings, 0.12), "words": (words_case, 0.18),
}  # fmt: skip

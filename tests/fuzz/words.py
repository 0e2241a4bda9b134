"""Command lines: every command with options of its own, values mostly right and sometimes anything.

`measure`, `verify` and `calibrate` would run PyTorch: a word that their argument checks refuse is among
theirs always. What takes seconds even for a tiny model is drawn seldom.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Final

from memcalc.cli.option import Option
from memcalc.cli.options import COMMANDS, options_of
from tests.fuzz import seeds
from tests.fuzz.oracle import Case
from tests.fuzz.values import Random, word

#: Commands and how often they are drawn.
_OFTEN: Final = {
    "estimate": 12, "explain": 5, "infer": 4, "compare": 4, "train-time": 6, "mfu": 6, "export": 8,
    "import": 2, "list": 3, "show": 3, "doctor": 1, "diff": 3, "measure": 3, "verify": 3,
    "calibrate": 2, "accuracy": 2, "chart": 2, "solve": 1, "search": 1, "advise": 0.5, "report": 0.1,
}  # fmt: skip
_RUNS_TORCH: Final = ("measure", "verify", "calibrate")
_MODELS: Final = ("config.json", "config.json", "gpt2.json", "moe.json", "t5.json", ".", "gpt2")
_NUMBERS: Final = ("1", "1", "2", "2", "4", "8", "16", "64", "128")
_NAMES: Final = {
    "gpu": ("h100-80gb", "h100", "a100", "t4", "mi300x", "m4-max"), "cluster": ("dgx-h100", "dgx-a100-80gb"),
    "stack": ("torch", "hf", "megatron", "deepspeed", "torchtitan", "torchtune", "nanotron", "litgpt"),
    "calibration": ("default", "auto"), "x": ("seq", "tp"), "y": ("gpu",), "model": ("config.json",),
    "sort": ("memory", "-fits"), "format": ("deepspeed", "accelerate", "torchtitan", "megatron"),
    "peft": ("lora", "qlora", "dora", "ia3", "prefix", "freeze:1"), "weights": ("nf4", "int8", "gptq"),
    "recompute": ("none", "full", "full:1", "sac", "selective"), "device": ("cpu", "gpu", "cuda"),
}  # fmt: skip
_FILES: Final = ("out.json", "out.csv", "out.txt", "out.md", "run.toml", "no/out.json", ".", "", "/dev/null",
                 "/dev/full", "a\0b", "~nobody-here/a", "x" * 300, "-", "config.json")  # fmt: skip


def words_case(r: Random) -> Case:
    """A command line over files of tiny models."""
    command = r.choices(list(_OFTEN), list(_OFTEN.values()))[0]
    if r.random() < 0.01:
        return Case([word(r), *(word(r) for _ in range(r.randrange(3)))])
    words = [command, *_positionals(r, command)]
    known = [option for option in options_of(command) if option.name != "debug"]
    for option in r.sample(known, min(len(known), r.choice((0, 1, 1, 2, 2, 3, 4, 6)))):
        words += _stated(r, option)
    if r.random() < 0.05:
        words.insert(r.randrange(1, len(words) + 1), word(r))
    if command in _RUNS_TORCH:
        words += ["--threads", "none"] if command == "calibrate" else ["--steps", "0"]
    files = _files()
    if command == "accuracy" and "--rows" not in words:
        words += ["--rows", "rows.csv"]
        files["rows.csv"] = _rows()
    return Case(_sane(words), files)


def _rows() -> bytes:
    header, first, *_ = seeds.rows()
    text = io.StringIO()
    csv.writer(text).writerows([header, first])
    return text.getvalue().encode()


def _sane(words: list[str]) -> list[str]:
    """Words as a shell could pass them, without a wish for help or for folders outside."""
    asks = ("--help", "-h", "--install-completion", "--show-completion", "--debug")
    kept = [word for word in words if word not in asks]
    return [word for word in kept if "/etc" not in word] or ["doctor"]


def _files() -> dict[str, bytes]:
    gpt2, moe, t5 = _others()
    return {
        "config.json": json.dumps(seeds.TINY).encode(),
        "gpt2.json": gpt2,
        "moe.json": moe,
        "t5.json": t5,
    }


def _others() -> tuple[bytes, ...]:
    kinds = {config["model_type"]: config for config in seeds.configs()}
    return tuple(json.dumps(kinds[kind]).encode() for kind in ("gpt2", "mixtral", "t5"))


def _positionals(r: Random, command: str) -> list[str]:
    found = []
    for name in COMMANDS[command][0].split():
        if name.startswith("[") and r.random() < 0.3 or r.random() < 0.03:
            continue
        found.append(word(r) if r.random() < 0.06 else _positional(r, name.strip("[]"), command))
    return found


def _positional(r: Random, name: str, command: str) -> str:
    if name == "MODEL":
        return r.choice(_MODELS)
    if name == "WHAT":
        return r.choice(("micro-batch", "seq", "gpus", "layers", "batch", "context"))
    if name == "KIND" and command == "chart":
        return r.choice(
            ("breakdown", "timeline", "sweep", "compare", "roofline", "pipeline", "scaling")
        )
    if name == "KIND":
        return r.choice(
            ("models", "gpus", "clusters", "stacks", "weights", "engines", "calibrations")
        )
    if name == "NAME":
        return r.choice(
            ("h100-80gb", "gpt2", "megatron", "dgx-h100", "nf4", "vllm", "default-hopper")
        )
    return r.choice(
        ("config.json --seq 64", "config.json", "gpt2.json --fsdp --gpus 2", "--num-layers 2")
    )


def _stated(r: Random, option: Option) -> list[str]:
    """An option with a value, mostly one that it takes."""
    flag = r.choice((option.flag, *option.flags))
    if not option.takes_value:
        return [flag]
    if option.kind == "file":
        return [flag, r.choice(_FILES)]
    text = word(r) if r.random() < 0.15 else _right(r, option)
    return [f"{flag}={text}"] if r.random() < 0.2 else [flag, text]


def _right(r: Random, option: Option) -> str:
    if option.name in _NAMES:
        return r.choice(_NAMES[option.name])
    if option.choices:
        return r.choice(option.choices)
    if option.kind in ("count", "decimal"):
        return r.choice((*_NUMBERS, "1,2", "1..3"))
    if option.kind == "number":
        return r.choice(("0", "0.1", "0.5", "1", "1.5", "2", "10", "100"))
    if option.kind == "memory":
        return r.choice(("1GiB", "80GB", "500MiB"))
    if option.name == "set":
        return r.choice(("training.loss_chunks=2", "model.vocab_size=99", "kernels.norm=native",
                         "stack.reduce_bucket_size=5e8", "model.layer_types=full,sliding"))  # fmt: skip
    if option.name == "setup":
        return r.choice(("--fsdp --gpus 2", "a: --tp 2", "--recompute full"))
    if option.name == "fix":
        return r.choice(("tp=1,2", "pp=1..2", "recompute=none"))
    return r.choice(("1", "2", "1,1", "true", "memory", "fits"))

"""docs/commands/: a page for each command, written from the option table, with real outputs.

    python -m benchmarks.command_pages            run the shown examples and write the pages
    python -m benchmarks.command_pages --check    exit 1 where a page is not what would be written

--check runs nothing: it takes the outputs from the pages, which tests/test_readme.py holds against the
commands. Checked by: tests/cli/test_command_pages.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from memcalc.cli.options import COMMANDS
from memcalc.cli.pages.files import markdown_index, markdown_page
from memcalc.cli.pages.page import page_of

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "commands"
#: One example of each command whose output is shown: quick, short, the same on every machine.
SHOWN = {
    "estimate": "memcalc estimate llama-3.2-1b --gpu h100 --quiet",
    "infer": "memcalc infer llama-3-8b --gpu a100-80gb --batch 32 --context 8k --quiet",
    "explain": "memcalc explain gpt2 --quiet",
    "solve": "memcalc solve micro-batch llama-3.1-8b --gpu h100 --gpus 8 --fsdp --quiet",
    "search": "memcalc search llama-3.1-8b --gpu h100 --gpus 8 --global-batch 64 --fix tp=1 --quiet",
    "advise": "memcalc advise gpt2 --gpu 4090 --quiet",
    "compare": "memcalc compare llama-3.1-8b --gpu h100,h200 --gpus 8 --fsdp --csv --columns fits",
    "chart": "memcalc chart breakdown gpt2",
    "export": "memcalc export gpt2 --gpus 8 --zero 1 --format accelerate --quiet",
    "import": "memcalc import '--bf16 --tensor-model-parallel-size 2' --model gpt2 --gpus 8 --quiet",
    "train-time": "memcalc train-time llama-7b --gpu a100 --gpus 64 --tokens 1T --mfu 40 --quiet",
    "mfu": "memcalc mfu --tflops 100 --gpu a100",
    "accuracy": "memcalc accuracy --source torchtune --memory --quiet",
    "list": "memcalc list engines",
    "show": "memcalc show stacks torch",
    "doctor": "memcalc doctor --quiet",
    "diff": "memcalc diff gpt2 'gpt2 --recompute full'",
}
#: Why the others show none.
_SILENT = {
    "report": "The page is the result: one file that opens from disk.",
    "verify": "Outputs are in [verify.md](../verify.md).",
    "measure": "Outputs are those of `verify` without the predictions: [verify.md](../verify.md).",
    "calibrate": "What it writes is in [calibration.md](../calibration.md).",
}
_CONSOLE = re.compile(r"^```console\n\$ (?P<command>[^\n]*)\n(?P<output>.*?)^```$", re.M | re.S)


def pages(outputs: dict[str, str]) -> dict[str, str]:
    """Every page by its file name; outputs: what the shown example of a command prints."""
    found = {"README.md": markdown_index()}
    for command in COMMANDS:
        found[f"{command}.md"] = markdown_page(page_of(command), _examples(command, outputs))
    return found


def _examples(command: str, outputs: dict[str, str]) -> str:
    listed = "\n".join(["```text", *(f"$ {line}" for line in page_of(command).examples), "```"])
    if command not in SHOWN:
        return f"{listed}\n\n{_SILENT[command]}"
    return f"{listed}\n\n```console\n$ {SHOWN[command]}\n{outputs.get(command, '')}```"


def kept_outputs() -> dict[str, str]:
    """The outputs that the pages show, where the command is still the one shown."""
    found = {}
    for command, line in SHOWN.items():
        path = FOLDER / f"{command}.md"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        shown = _CONSOLE.search(text)
        if shown is not None and shown["command"] == line:
            found[command] = shown["output"]
    return found


def made_outputs() -> dict[str, str]:
    """What the shown examples print now, each in a process of its own."""
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    found = {}
    with tempfile.TemporaryDirectory() as empty:
        for command, line in SHOWN.items():
            words = [sys.executable, "-m", "memcalc", *shlex.split(line)[1:]]
            done = subprocess.run(words, cwd=empty, env=environment, capture_output=True, text=True,
                                  timeout=300, check=False)  # fmt: skip
            if done.returncode not in (0, 3):
                raise SystemExit(f"{line}: {done.stderr.strip()}")
            found[command] = done.stdout
    return found


def main(words: list[str]) -> int:
    """Write the pages, or with --check say which are stale."""
    if "--check" in words:
        stale = [name for name, text in pages(kept_outputs()).items() if _read(name) != text]
        print(f"stale: {', '.join(stale)}" if stale else "docs/commands is up to date")
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages(made_outputs()).items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


def _read(name: str) -> str | None:
    path = FOLDER / name
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

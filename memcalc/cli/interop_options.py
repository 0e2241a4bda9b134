"""Options of `export` and `import` alone: rows of the one table (`cli/options.py`)."""

from __future__ import annotations

from typing import Final

from memcalc.cli.option import Option

#: The tools by name; a test holds them against planning/interop/formats.py.
TOOLS: Final = ("deepspeed", "accelerate", "torchtitan", "megatron")
_BOTH: Final = ("export", "import")
INTEROP_OPTIONS: Final = (
    Option("format", "text", "Output", "Whose settings", "import: by the file's ending and words",
           commands=_BOTH, choices=TOOLS),
    Option("tool-version", "text", "Output",
           "Form of torchtitan's settings: 0.2 TOML, 0.3 command-line flags", "0.3",
           commands=("export",), choices=("0.2", "0.3")),
)  # fmt: skip

"""Options of `export` and `import` alone: rows of the one table (`cli/options.py`).

Both commands take the options of `estimate` besides: `export` to state the setup it writes, `import` for
what a file does not say, or says otherwise than wanted (planning/interop holds what the files mean).
"""

from __future__ import annotations

from typing import Final

from memcalc.cli.option import Option

#: The tools by name; a test holds them against planning/interop/formats.py.
TOOLS: Final = ("deepspeed", "accelerate", "torchtitan", "megatron")
#: Forms of torchtitan's settings that are written: TOML, command-line flags.
TITAN_VERSIONS: Final = ("0.2", "0.3")
#: The two commands.
_BOTH: Final = ("export", "import")
INTEROP_OPTIONS: Final = (
    Option("format", "text", "Output", "Whose settings", "import: by the file's ending and words",
           commands=_BOTH, choices=TOOLS),
    Option("tool-version", "text", "Output",
           "Form of torchtitan's settings: 0.2 TOML, 0.3 command-line flags", "0.3",
           commands=("export",), choices=TITAN_VERSIONS),
)  # fmt: skip

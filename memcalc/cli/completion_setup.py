"""memcalc --install-completion [SHELL], --show-completion [SHELL]: typer's scripts for the shells.

The scripts call `memcalc` for the candidates, which `cli/complete.py` gives. `installed_for` says where
a shell's script would be, for `memcalc doctor`. Checked by: cli/test_completion.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from memcalc.errors import ConfigError, unknown

SHELLS: Final = ("bash", "zsh", "fish", "powershell", "pwsh")
#: Where typer puts a shell's script, below the home directory; PowerShell's is in its own profile.
_SCRIPTS: Final = {
    "bash": ".bash_completions/memcalc.sh",
    "zsh": ".zfunc/_memcalc",
    "fish": ".config/fish/completions/memcalc.fish",
}


def set_up(words: Sequence[str]) -> int:
    """Install or print the script of a shell, this one's unless it is named. Raises ConfigError."""
    import typer
    from typer.completion import get_completion_script, install  # type: ignore[attr-defined]

    shell = _shell(words)
    try:
        if words[0] == "--show-completion":
            print(get_completion_script(
                prog_name="memcalc", complete_var="_MEMCALC_COMPLETE", shell=shell,
            ))  # fmt: skip
            return 0
        _, path = install(shell=shell, prog_name="memcalc", complete_var="_MEMCALC_COMPLETE")
    except OSError as error:  # PowerShell is asked where its profile lies
        said = f"{error.strerror}: {error.filename}"
        why = "is not installed" if error.filename == shell else f"has no place for it ({said})"
        raise ConfigError(
            f"{words[0]}: {shell} {why}; rule: where the script can be written; nearest valid: "
            f"memcalc --show-completion {shell}"
        ) from None
    except typer.Exit:
        raise ConfigError(
            f"{words[0]}: {shell} has none; rule: one of {', '.join(SHELLS)}"
        ) from None
    print(f"completion for {shell} written to {path}; it works in the next shell")
    return 0


def _shell(words: Sequence[str]) -> str:
    if len(words) > 2:
        raise ConfigError(f"argument: got {words[2]!r} too many; rule: memcalc {words[0]} [SHELL]")
    if len(words) == 2:
        if words[1] not in SHELLS:
            raise unknown("shell", words[1], SHELLS)
        return words[1]
    found = this_shell()
    if found not in SHELLS:
        raise ConfigError(
            f"shell: got {found or 'none that is known'}; rule: memcalc {words[0]} "
            f"{'|'.join(SHELLS)}"
        )
    return found


def this_shell() -> str:
    """The shell memcalc was started from, else the user's; "" where neither is known."""
    try:
        import shellingham  # type: ignore[import-untyped]

        name = shellingham.detect_shell()[0]
    except Exception:  # its own error, or a platform without the files it reads
        name = ""
    return str(name or Path(os.environ.get("SHELL", "")).name)


def installed_for() -> list[str]:
    """The shells whose script is in its place below the home directory."""
    try:
        return [shell for shell, path in _SCRIPTS.items() if (Path.home() / path).is_file()]
    except (OSError, RuntimeError):
        return []

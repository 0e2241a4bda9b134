"""Shell completion: what may stand where the cursor is, by the option table, without building typer.

Typer writes the shells' scripts (`cli/completion_setup.py`); they call `memcalc` with the variable
_MEMCALC_COMPLETE and the line so far, and `answer` replies in the form each shell wants. Where nothing is
said the shell completes file names. Checked by: cli/test_completion.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from memcalc.cli.option import SEVERAL


class Candidate(NamedTuple):
    """A word that may be typed, and what it means."""

    word: str
    said: str = ""


def answer(environment: Mapping[str, str]) -> int:
    """Print the candidates for the line in a shell's variables; returns the exit status.

    fish also asks whether there are any: 0 for yes, 1 for no.
    """
    shell = environment.get("_MEMCALC_COMPLETE", "").removeprefix("complete_")
    words, last = _line(shell, environment)
    found = candidates(words, last)
    if shell == "bash":  # which replaces what follows the last of its word breaks
        begun = max(last.rfind("="), last.rfind(":")) + 1
        found = [Candidate(one.word[begun:], one.said) for one in found]
    if shell == "fish" and environment.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        return 0 if found else 1
    text = _FORMS.get(shell, _plain)(found)
    if text:
        print(text)
    return 0


def candidates(words: Sequence[str], last: str) -> list[Candidate]:
    """What may replace `last`, after the words before it (without `memcalc` itself)."""
    from memcalc.cli.options import BY_FLAG, COMMANDS

    if words and words[0] == "help":
        words = words[1:]
    if not words:
        known = [Candidate(name, said) for name, (_, said) in COMMANDS.items()]
        more = [Candidate("help", "All about a command")]
        more += [Candidate(flag) for flag in ("--help", "--version", "--install-completion",
                                              "--show-completion")]  # fmt: skip
        return _starting([*known, *more], last)
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        return []
    before = BY_FLAG.get(rest[-1]) if rest else None
    if before is not None and before.takes_value:
        return _values(command, before.name, last)
    flag, equals, value = last.partition("=")
    if equals and flag in BY_FLAG:
        found = _values(command, BY_FLAG[flag].name, value)
        return [Candidate(f"{flag}={one.word}", one.said) for one in found]
    if last.startswith("-"):
        return _starting(_options(command, rest), last)
    return _positional(command, rest, last)


def _options(command: str, given: Sequence[str]) -> list[Candidate]:
    """The options not given yet; those that may be repeated stay."""
    from memcalc.cli.options import options_of

    taken = {word.partition("=")[0] for word in given}
    return [
        Candidate(option.flag, option.help)
        for option in options_of(command)
        if option.kind == "many" or taken.isdisjoint((option.flag, *option.flags))
    ]


def _values(command: str, name: str, last: str) -> list[Candidate]:
    """The values of an option; of a list, of its last entry."""
    from memcalc.cli.options import BY_NAME

    listed = command in SEVERAL or BY_NAME[name].kind == "names" or name == "stack"
    head, comma, tail = last.rpartition(",") if listed else ("", "", last)
    choices = BY_NAME[name].choices or _SOURCES.get(name, lambda: ())()
    return _starting(
        (Candidate(f"{head}{comma}{word}") for word in choices), f"{head}{comma}{tail}"
    )


def _positional(command: str, given: Sequence[str], last: str) -> list[Candidate]:
    """Names for the positional argument that comes next."""
    from memcalc.cli.options import COMMANDS

    wanted = COMMANDS[command][0].split()
    words = _plain_words(given)
    if command == "show":
        kinds = [words[0]] if words else ["models", "gpus", "stacks", "clusters", "engines"]
        named = [word for kind in kinds for word in _profiles(kind)()]
        return _starting(map(Candidate, [*([] if words else _KINDS), *named]), last)
    if len(words) >= len(wanted):
        return []
    kind = wanted[len(words)].strip("[]")
    if kind == "KIND":
        from memcalc.cli.chart_options import KINDS

        known = KINDS if command == "chart" else dict.fromkeys(_KINDS, "")
        return _starting((Candidate(word, said) for word, said in known.items()), last)
    if kind == "WHAT":
        return _starting(map(Candidate, _WHATS), last)
    return _values(command, "model", last) if kind == "MODEL" else []


def _plain_words(given: Sequence[str]) -> list[str]:
    """The positional arguments among the words given."""
    from memcalc.cli.options import BY_FLAG

    found, skip = [], False
    for word in given:
        option = BY_FLAG.get(word)
        if not skip and not word.startswith("-"):
            found.append(word)
        skip = option is not None and option.takes_value
    return found


def _starting(known: Iterable[Candidate], last: str) -> list[Candidate]:
    wanted = last.lower()
    return [one for one in known if one.word.lower().startswith(wanted)]


def _profiles(kind: str) -> Callable[[], Sequence[str]]:
    def names() -> Sequence[str]:
        from memcalc.inputs.profiles import KINDS, profile_names

        return profile_names(kind) if kind in KINDS else _calibrations()

    return names


def _gpus() -> Sequence[str]:
    return ["local", *_profiles("gpus")()]


def _calibrations() -> Sequence[str]:
    from memcalc.inputs.calibrations import entries

    return ["default", "auto", *(entry.name for entry in entries())]


def _weights() -> Sequence[str]:
    from memcalc.inputs.weights import weight_names

    return weight_names()


def _recompute() -> Sequence[str]:
    from memcalc.inputs.training_names import RECOMPUTE

    return RECOMPUTE


def _methods() -> Sequence[str]:
    from memcalc.inputs.peft import METHODS

    return [word for word in METHODS if word != "freeze"] + ["freeze:2"]


def _axes() -> Sequence[str]:
    from memcalc.planning.search.wishes import AXES

    return [f"{axis}=" for axis in AXES]


_KINDS: Final = ("models", "gpus", "stacks", "clusters", "weights", "engines", "calibrations")
_WHATS: Final = ("micro-batch", "seq", "gpus", "layers", "batch", "context")
#: Option -> the names it may take, read only when they are asked for.
_SOURCES: Final[dict[str, Callable[[], Sequence[str]]]] = {
    **dict.fromkeys(("model", "draft", "critic", "reward-model"), _profiles("models")),
    "gpu": _gpus,
    "cluster": _profiles("clusters"),
    "stack": _profiles("stacks"),
    "calibration": _calibrations,
    "weights": _weights,
    "recompute": _recompute,
    "peft": _methods,
    "fix": _axes,
    "device": lambda: ("cuda", "cpu"),
    "reshard": lambda: ("true", "false"),
}


def _line(shell: str, environment: Mapping[str, str]) -> tuple[list[str], str]:
    """The words before the cursor's, without `memcalc`, and the cursor's own, which may be empty."""
    if shell == "bash":
        words = _split(environment.get("COMP_WORDS", ""))
        at = environment.get("COMP_CWORD", "")
        count = int(at) if at.isdigit() else len(words)
        return _joined(words[1:count], words[count] if count < len(words) else "")
    text = environment.get("_TYPER_COMPLETE_ARGS", "")
    words = _split(text)[1:]
    if shell in ("powershell", "pwsh"):
        last = environment.get("_TYPER_COMPLETE_WORD_TO_COMPLETE", "")
        return (words[:-1] if last and words else words), last
    if not words or text[-1:].isspace():
        return words, ""
    return words[:-1], words[-1]


def _joined(words: Sequence[str], last: str) -> tuple[list[str], str]:
    """bash parts words at '=' and ':': `--gpu=h1` is three of them."""
    found: list[str] = []
    for word in (*words, last):
        if found and (word in ("=", ":") or found[-1][-1:] in ("=", ":")):
            found[-1] += word
        else:
            found.append(word)
    return found[:-1], found[-1]


def _split(text: str) -> list[str]:
    """Words as the shell parts them; an open quote ends with the line."""
    for mended in (text, text + "'", text + '"'):
        try:
            return shlex.split(mended)
        except ValueError:
            continue
    return text.split()


def _plain(found: Sequence[Candidate]) -> str:
    return "\n".join(one.word for one in found)


def _fish(found: Sequence[Candidate]) -> str:
    """A candidate a line, what it means behind a tab."""
    return "\n".join(f"{one.word}\t{' '.join(one.said.split())}".rstrip() for one in found)


def _zsh(found: Sequence[Candidate]) -> str:
    """The words for zsh's _arguments, or its own file names."""
    if not found:
        return "_files"

    def quoted(text: str) -> str:
        return text.replace('"', '""').replace("'", "''").replace("$", "\\$").replace(
            "`", "\\`").replace(":", "\\\\:")  # fmt: skip

    rows = [
        f'"{quoted(one.word)}"' + (f':"{quoted(one.said)}"' if one.said else "") for one in found
    ]
    return f"_arguments '*: :(({' '.join(rows)}))'"


def _powershell(found: Sequence[Candidate]) -> str:
    return "\n".join(f"{one.word}:::{one.said or ' '}" for one in found)


_FORMS: Final[dict[str, Callable[[Sequence[Candidate]], str]]] = {
    "bash": _plain, "fish": _fish, "zsh": _zsh, "powershell": _powershell, "pwsh": _powershell,
}  # fmt: skip

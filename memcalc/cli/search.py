"""memcalc search MODEL --gpus N --global-batch B: the best setups on a cluster, of every one there is.

Options of a setup that are axes of the space (--tp 8, --recompute full) fix them, as --fix does; all
others (--seq, --precision, ...) hold for every setup. Exit status 0; 3 where nothing fits, with what
lacks least; 130 where it was interrupted, with what was found. Checked by: cli/test_search.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from memcalc.cli.deliver import FORMS, form_flag
from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments, Value, check_positionals
from memcalc.cli.request import device_stated, typed
from memcalc.cli.search_options import SEARCH_OPTIONS
from memcalc.cli.variant_cases import Maker
from memcalc.cli.variant_lists import values_of
from memcalc.errors import ConfigError
from memcalc.inputs.training import resolve
from memcalc.output.files import check_writable, put_notes, put_stdout, to_json, write_text
from memcalc.output.progress import progress
from memcalc.planning.cases import Case
from memcalc.planning.search.wishes import AXES, NUMBERS, RANKS, Wishes

if TYPE_CHECKING:
    from memcalc.output.console import Page

#: What is searched for, the options all setups share, and the form asked for with its file.
Prepared = tuple[Wishes, dict[str, Value], tuple[str, str | None]]
Tell = Callable[[str, int, int], None]
NOTHING_FITS, INTERRUPTED = 3, 130
_OWN: Final = frozenset(option.name for option in SEARCH_OPTIONS)
#: Options that say how a result is handed over.
_OUTPUT: Final = frozenset(
    {"json", "csv", "markdown", "quiet", "out", "chart", "theme", "top", "price", "config", "save",
     "debug"}
)  # fmt: skip
#: Flags of a setup that are values of an axis.
_FLAGS: Final = {
    "sp": ("sp", "yes"), "no-sp": ("sp", "no"),
    "overlap-grad-reduce": ("overlap-grad-reduce", "yes"),
    "overlap-param-gather": ("overlap-param-gather", "yes"),
}  # fmt: skip
_ENDINGS: Final = {".json": "json", ".csv": "csv", ".md": "md", ".txt": "txt"}
#: Options that the space decides and that are no axes of it.
_REFUSED: Final = ("dp", "grad-accum", "fsdp", "shard", "offload", "cp-method", "peft", "setup",
                   "recompute-modules", "loss-chunks")  # fmt: skip
_TOP: Final = 10


def run(arguments: Arguments) -> int:
    """Search, write the result, and return the exit status."""
    prepare = prepared(arguments)
    with progress("search", arguments.has("quiet"), after_s=1.0) as tell:
        found = found_of(prepare, tell)
    _deliver(arguments, found, prepare[2])
    if found["interrupted"]:
        return INTERRUPTED
    return 0 if found["best"] else NOTHING_FITS


def found_of(prepare: Prepared, tell: Tell | None = None) -> dict[str, Any]:
    """The result of a search that `prepared` made ready."""
    from memcalc.planning.search.search import search

    wishes, base, _ = prepare
    maker = Maker()

    def case_of(options: Mapping[str, str | bool]) -> Any:
        stated: dict[str, Value] = {**base, **options}
        return maker.case({}, stated)

    return _headed(wishes, search(wishes, case_of, tell))


def prepared(arguments: Arguments) -> Prepared:
    """What is searched for, the options all setups share, and the form asked for. Raises ConfigError."""
    if (path := arguments.text("config")) is not None:
        from memcalc.cli.runfile import merge_run_file

        merge_run_file(arguments, path)
    check_positionals(arguments)
    form = _form(arguments)
    for name in _REFUSED:
        if name in arguments.options:
            raise ConfigError(f"--{name}: not an option of search; rule: --fix, or memcalc compare")
    for name in ("gpus", "global-batch"):
        if name not in arguments.options:
            raise ConfigError(f"search: got no --{name}; rule: memcalc search MODEL --gpus N "
                              "--global-batch B")  # fmt: skip
    fixed = _fixed(arguments)
    base: dict[str, Value] = {"model": arguments.positionals[0]}
    base |= {
        name: value
        for name, value in arguments.options.items()
        if name not in _OWN | _OUTPUT | set(_FLAGS) | {"stack", "gpus"} and name not in AXES
    }
    return _wishes(arguments, base, fixed), base, form


def _wishes(arguments: Arguments, base: Mapping[str, Value], fixed: dict[str, list[str]]) -> Wishes:
    stacks = tuple(dict.fromkeys((arguments.text("stack") or "megatron").split(",")))
    device = device_stated(arguments)
    if device.gpu is None:
        raise ConfigError("search: got no GPU; rule: --gpu NAME or --cluster NAME")
    shared = {name: value for name, value in base.items() if name not in ("global-batch",)}
    case = Maker().case({}, {**shared, "stack": stacks[0]})
    if not isinstance(case, Case):
        raise ConfigError(case.reason)
    gpus, batch, top = (
        int(typed(BY_NAME[name], text)) if (text := arguments.text(name)) is not None else _TOP
        for name in ("gpus", "global-batch", "top")
    )
    per_node, price = arguments.text("gpus-per-node"), arguments.text("price")
    return Wishes(
        config=resolve(case.setup, case.config).config, setup=_with_seq(case), device=device,
        gpus=gpus, batch=batch,
        stacks=stacks, fixed=fixed, most=_most(arguments), headroom=_share(arguments),
        rank=str(typed(BY_NAME["rank"], arguments.text("rank") or RANKS[0])), top=top,
        price=None if price is None else float(typed(BY_NAME["price"], price)),
        gpus_per_node=None if per_node is None else int(typed(BY_NAME["gpus-per-node"], per_node)),
    )  # fmt: skip


def _with_seq(case: Any) -> Any:
    """The setup with its sequence length filled in."""
    from dataclasses import replace

    seq = case.setup.seq_len or min(2048, case.config.max_position_embeddings)
    return replace(case.setup, seq_len=seq, global_batch=None)


def _fixed(arguments: Arguments) -> dict[str, list[str]]:
    """Axis to the values wanted, from --fix and from options of a setup that are axes."""
    found: dict[str, list[str]] = {}
    stated = arguments.options.get("fix")
    for text in stated if isinstance(stated, list) else []:
        axis, equals, values = text.partition("=")
        if not equals or not values:
            raise ConfigError(f"--fix: got {text!r}; rule: AXIS=VALUES, as tp=8 or pp=1..8")
        if axis not in AXES:
            raise ConfigError(f"--fix: got axis {axis!r}; valid: {', '.join(AXES)}")
        found[axis] = _values(axis, values)
    for axis in AXES:
        if (value := arguments.text(axis)) is not None:
            found[axis] = _values(axis, value)
    for name, (axis, said) in _FLAGS.items():
        if arguments.has(name):
            found[axis] = [said]
    return found


def _values(axis: str, text: str) -> list[str]:
    """The values of a list or a range, each as the space writes it."""
    option = BY_NAME[axis]
    if axis in NUMBERS or axis == "zero":
        shown = [str(typed(option, one)) for one in values_of(option, text)]
        return [str(int(one)) for one in shown]
    if axis == "stage-layers":
        return [text]
    values = [one.strip() for one in text.split(",")]
    if option.choices:
        for one in values:
            typed(option, one)
    if axis == "recompute":
        for one in values:
            typed(option, one)
    return values


def _most(arguments: Arguments) -> dict[str, int]:
    found = {}
    for axis in NUMBERS:
        name = f"max-{axis}"
        if (text := arguments.text(name)) is not None:
            found[axis] = int(typed(BY_NAME[name], text))
    return found


def _share(arguments: Arguments) -> float:
    """The headroom that must stay, as a share."""
    text = (arguments.text("min-headroom") or "0%").strip()
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not text.endswith("%") or not 0 <= share < 1:
        raise ConfigError(f"--min-headroom: got {text!r}; rule: a share, as 5%, below 100%")
    return share


def _form(arguments: Arguments) -> tuple[str, str | None]:
    """The form of the result and its file, None for stdout; files are checked before the search."""
    from memcalc.output.charts.house import picture_kind

    picture = arguments.text("chart")
    if picture is not None:
        check_writable(picture)
        if picture_kind(picture) is None:
            raise ConfigError(f"--chart: got {picture!r}; rule: a file ending in .png, .svg, .pdf")
    flag, path = form_flag(arguments), arguments.text("out")
    stated = None if flag is None else FORMS[flag]
    if path is None or path == "-":
        return stated or ("quiet" if arguments.has("quiet") else "txt"), None
    check_writable(path)
    form = _ENDINGS.get(PurePath(path).suffix.lower(), stated)
    if form is None or stated not in (None, form):
        raise ConfigError(f"--out: got {path!r}; rule: a file ending in {', '.join(_ENDINGS)}")
    return form, path


def _headed(wishes: Wishes, found: dict[str, Any]) -> dict[str, Any]:
    """The result under the head that every result has."""
    from memcalc.planning.charts.head import head

    gpu = wishes.device.gpu
    assert gpu is not None
    title = f"{wishes.config.name} on {wishes.gpus:,} x {gpu.slug}: memory and speed"
    setup = wishes.setup
    said = f"seq {setup.seq_len:,}, global batch {wishes.batch:,}, {setup.precision}, "
    said += f"{setup.optimizer}; stacks {', '.join(wishes.stacks)}"
    usable = wishes.device.usable_bytes
    return {
        **head("search", title, said), "model": wishes.config.name, "gpu": gpu.slug,
        "usable_bytes": usable, **found,
    }  # fmt: skip


def _deliver(arguments: Arguments, found: dict[str, Any], form: tuple[str, str | None]) -> None:
    from memcalc.output import search_text

    kind, path = form
    if (picture := arguments.text("chart")) is not None:
        from memcalc.output.charts.house import save
        from memcalc.output.charts.search import draw

        save(picture, found, draw, arguments.text("theme") or "light")
    if not arguments.has("quiet"):
        put_notes(search_text.notes(found))
    if kind == "json":
        text = to_json(found)
    elif kind in ("csv", "md"):
        text = search_text.rows_text(found, kind)
    elif kind == "quiet":
        text = search_text.quiet_line(found) + "\n"
    else:
        from memcalc.output.console import render

        def page(sheet: Page) -> None:
            search_text.search_page(sheet, found)

        text = render(page, path is not None)
    if path is None:
        put_stdout(text)
    else:
        write_text(path, text)

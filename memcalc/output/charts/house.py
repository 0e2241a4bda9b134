"""House style: one look for every chart, and pictures that are the same bytes for the same input.

A chart is drawn by `draw(figure, found)` from its JSON object; title, subtitle and source line come from
the object's head. Object interface only: no pyplot, no display, and none of the user's own matplotlib
settings. Checked by: unit/test_charts_house.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from memcalc.errors import ConfigError
from memcalc.output.charts.palette import THEMES, Ink, theme_named
from memcalc.output.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.text import Text

Found = Mapping[str, Any]
Draw = Callable[["Figure", Found], None]
#: Inches: half a page of a paper.
SIZE: Final = (7.2, 4.2)
PICTURES: Final = ("png", "svg", "pdf")
#: Points: text of axes and legends, title, source line.
TEXT_PT, TITLE_PT, SOURCE_PT = 9.0, 11.5, 8.0
_DPI = 200
_EDGE = 0.1  # inches around everything
_LINES = 4  # of a title at most
_STYLE: Final = {
    "font.family": "DejaVu Sans", "font.size": TEXT_PT, "text.parse_math": False,
    "axes.labelsize": TEXT_PT, "axes.titlesize": TEXT_PT, "axes.titlelocation": "left",
    "xtick.labelsize": TEXT_PT, "ytick.labelsize": TEXT_PT, "legend.fontsize": TEXT_PT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.linewidth": 0.7,
    "xtick.major.size": 3, "ytick.major.size": 0, "axes.linewidth": 0.8, "lines.linewidth": 1.6,
    "legend.frameon": False, "legend.handlelength": 1.4, "legend.handleheight": 0.9,
    "legend.columnspacing": 1.2, "legend.handletextpad": 0.5, "hatch.linewidth": 0.7,
    "svg.fonttype": "path", "svg.hashsalt": "memcalc", "pdf.fonttype": 42,
    "text.hinting": "none",  # widths scale, so that what is measured is what is drawn
}  # fmt: skip


@contextmanager
def style(theme: str = "light") -> Iterator[Ink]:
    """The house's settings while a figure is made and written; the caller's come back after."""
    import matplotlib

    ink = theme_named(theme)
    settings: dict[Any, Any] = {
        **_STYLE,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink.text),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), ink.background),
        "axes.edgecolor": ink.muted, "grid.color": ink.grid, "hatch.color": ink.background,
    }  # fmt: skip
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield ink


def figure(size: tuple[float, float] = SIZE, theme: str = "light") -> Figure:
    """An empty figure of this size in inches, on the theme's ground. Call it inside `style`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(
        figsize=size, facecolor=theme_named(theme).background, layout="constrained", dpi=_DPI
    )
    FigureCanvasAgg(made)
    return made


def ink(of: Figure | SubFigure) -> Ink:
    """The theme a figure was made with; axes.figure will do."""
    from matplotlib.colors import to_hex

    ground = to_hex(_root(of).get_facecolor())
    return next(theme for theme in THEMES.values() if theme.background == ground)


#: The same, under the name that reads better where there is a theme at hand.
theme_of = ink


def colours(of: Figure | SubFigure) -> Mapping[str, str]:
    """Category of memory -> colour, in a figure's theme."""
    return ink(of).categories


def series(of: Figure | SubFigure) -> tuple[str, ...]:
    """Colours for lines and points, in the order to use them."""
    return ink(of).series


def drawn(found: Found, draw: Draw, theme: str = "light") -> Figure:
    """The finished figure of a chart's object: what tests read the plotted data back from."""
    with style(theme):
        made = figure(theme=theme)
        draw(made, found)
        finish(made, found)
        made.draw_without_rendering()
        _freeze(made)
    return made


def _freeze(of: Figure) -> None:
    """Keep the layout as it is, rounded: the solver's last digits differ from run to run."""
    places = [(axes, axes.get_position(original=True).bounds) for axes in of.axes]
    of.set_layout_engine("none")
    for axes, bounds in places:
        left, bottom, width, height = (round(part, 6) for part in bounds)
        axes.set_position((left, bottom, width, height))


def picture(found: Found, draw: Draw, kind: str, theme: str = "light") -> bytes:
    """The chart as png, svg or pdf; the same bytes for the same object."""
    import io

    from memcalc import __version__

    made = drawn(found, draw, theme)
    maker, title = f"memcalc {__version__}", _clean(found["title"])
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": maker, "Title": title},
        "svg": {"Creator": maker, "Title": title, "Date": None},
        "pdf": {"Creator": maker, "Producer": maker, "Title": title, "CreationDate": None},
    }
    out = io.BytesIO()
    with style(theme):
        made.savefig(out, format=kind, dpi=_DPI, metadata=metadata[kind])
    return out.getvalue()


def picture_kind(path: str) -> str | None:
    """png, svg or pdf by a file's ending, None where it is none of these."""
    ending = PurePath(path).suffix.lower().removeprefix(".")
    return ending if ending in PICTURES else None


def save(path: str, found: Found, draw: Draw, theme: str = "light") -> None:
    """Write the chart to a file, whole or not at all; its ending says the kind. Raises ConfigError."""
    kind = picture_kind(path)
    if kind is None:
        raise ConfigError(f"picture: got {path!r}; rule: a file ending in .png, .svg or .pdf")
    write_bytes(path, picture(found, draw, kind, theme))


def finish(of: Figure, found: Found) -> None:
    """Title, subtitle, figure's legend and source line, wrapped to the width; axes leave them room.

    A title too long for a line is set smaller first, then broken. Where these take more than half of the
    figure it grows: its axes never get too small to read.
    """
    colour, margin = ink(of), _EDGE / of.get_size_inches()[0]
    top, placed = _EDGE, []  # what is placed, with its distance from the top in inches
    for text, size, shade, weight in (
        (found["title"], TITLE_PT, colour.text, "bold"),
        (found.get("subtitle") or "", TEXT_PT, colour.muted, "normal"),
    ):
        if text:
            line = of.text(margin, 1, _clean(text), ha="left", va="top", color=shade, fontsize=size,
                           fontweight=weight)  # fmt: skip
            placed.append((line, top))
            top += _fit(of, line, smallest=9.5 if weight == "bold" else size) + 0.05
    legends = []
    for legend in of.legends:
        legends.append((legend, top + 0.06))
        top += _extent(of, legend)[1] / of.dpi + 0.1
    source = of.text(margin, 0, _clean(found["source"]), ha="left", va="bottom", color=colour.muted,
                     fontsize=SOURCE_PT)  # fmt: skip
    bottom = _EDGE * 0.7 + _fit(of, source, SOURCE_PT) + 0.06
    width, height = of.get_size_inches()
    height = max(height, top + 0.05 + bottom + height / 2)
    of.set_size_inches(width, height)
    for line, at in placed:
        line.set_y(1 - at / height)
    for legend, at in legends:
        legend.set_bbox_to_anchor((margin, 1 - at / height))
    source.set_y(_EDGE * 0.7 / height)
    engine = of.get_layout_engine()
    assert engine is not None
    # the engine calls a free area (left, bottom, width, height), as shares of the figure
    engine.set(  # type: ignore[call-arg]
        rect=(margin, bottom / height, 1 - 2 * margin, 1 - (top + 0.05 + bottom) / height)
    )


def _fit(of: Figure, text: Text, smallest: float) -> float:
    """Make a text as wide as the figure at most; its height in inches."""
    limit = (of.get_size_inches()[0] - 2 * _EDGE) * of.dpi
    size = float(text.get_fontsize())
    while _extent(of, text)[0] > limit and size > smallest:
        size = max(smallest, size - 0.5)
        text.set_fontsize(size)
    lines: list[str] = []
    for word in text.get_text().split():
        for piece in _pieces(of, text, word, limit):
            text.set_text(f"{lines[-1]} {piece}" if lines else piece)
            if lines and _extent(of, text)[0] <= limit:
                lines[-1] = text.get_text()
            else:
                lines.append(piece)
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1][:-3] + "..."]
    text.set_text("\n".join(lines))
    return _extent(of, text)[1] / of.dpi


def _pieces(of: Figure, text: Text, word: str, limit: float) -> Iterator[str]:
    """A word, in parts where it alone is wider than the figure."""
    while word:
        count = len(word)
        text.set_text(word)
        while count > 1 and _extent(of, text)[0] > limit:
            count = max(1, int(count * min(0.95, limit / _extent(of, text)[0])))
            text.set_text(word[:count])
        yield word[:count]
        word = word[count:]


def _extent(of: Figure, artist: Artist) -> tuple[float, float]:
    box = artist.get_window_extent(of.canvas.get_renderer())  # type: ignore[attr-defined]
    return box.width, box.height


def text_width(
    of: Figure | SubFigure, text: str, size: float = TEXT_PT, weight: str = "normal"
) -> float:
    """Pixels a text takes in a figure; axes.figure will do."""
    root = _root(of)
    probe = root.text(0, 0, text, fontsize=size, fontweight=weight)
    try:
        return _extent(root, probe)[0]
    finally:
        probe.remove()


def settle(axes: Axes) -> None:
    """Lay the figure out, so that widths in pixels can be measured."""
    _root(axes.figure).draw_without_rendering()


def _root(of: Figure | SubFigure) -> Figure:
    figure = of.get_figure(root=True)
    assert figure is not None
    return figure


def _clean(text: str) -> str:
    """No control characters of a model's name reach a picture."""
    return "".join(c if c.isprintable() else "?" for c in text)


def legend_above(axes: Axes, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend above the axes, left, in as many columns as there is width to the figure's edge."""
    of = _root(axes.figure)
    settle(axes)
    limit = of.bbox.width - axes.get_window_extent().x0 - _EDGE * of.dpi
    for columns in range(len(handles), 0, -1):
        made = axes.legend(
            handles, labels, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1.0),
            borderaxespad=0.3, borderpad=0,
        )  # fmt: skip
        if columns == 1 or _extent(of, made)[0] <= limit:
            return


def legend_on_top(of: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend of the whole figure below its title, in as many columns as its width takes."""
    limit = of.bbox.width - 2.4 * _EDGE * of.dpi
    for columns in range(len(handles), 0, -1):
        made = of.legend(
            handles, labels, ncols=columns, loc="upper left", borderaxespad=0, borderpad=0,
        )  # fmt: skip
        made.set_in_layout(False)  # `finish` puts it below the title
        if columns == 1 or _extent(of, made)[0] <= limit:
            return
        made.remove()

"""House style: the same bytes every time, colours that can be told apart, text inside the picture."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from memcalc.errors import ConfigError
from memcalc.output.charts import house
from memcalc.output.charts.bar_labels import readable_on
from memcalc.output.charts.palette import CATEGORIES, THEMES, Ink, theme_named

FOUND = {
    "title": "a-model on h100-80gb: memory",
    "subtitle": "seq 2048, micro-batch 1",
    "source": "memcalc 0.0; rates default-hopper; stack torch",
}
#: Severe colour blindness in linear RGB: Machado, Oliveira, Fernandes 2009, table of severity 1.0.
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
#: What most pictures are made of; beside each other at any order in a bar.
LARGE = ("parameters", "gathered", "gradients", "optimizer", "activations", "loss", "temporary")


def draw(figure: Figure, found: Any) -> None:
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 2], label="a line")
    axes.set_xlabel("x, s")
    house.legend_on_top(figure, axes.lines, ["a line"])


def linear(colour: Any) -> np.ndarray[Any, Any]:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(colour: Any, blindness: str | None = None) -> np.ndarray[Any, Any]:
    """CIE L*a*b* (D65) of a colour, as seen with a kind of colour blindness."""
    rgb = linear(colour)
    if blindness is not None:
        rgb = np.clip(np.array(BLINDNESS[blindness]) @ rgb, 0, 1)
    xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                    [0.0193339, 0.1191920, 0.9503041]]) @ rgb / [0.95047, 1.0, 1.08883]  # fmt: skip
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast of two colours."""
    light, dark = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))[::-1]
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("blindness", [None, *BLINDNESS])
def test_large_categories_and_series_can_be_told_apart(theme: str, blindness: str | None) -> None:
    ink = THEMES[theme]
    for names in ([ink.categories[name] for name in LARGE], ink.series[:6]):
        seen = [lab(colour, blindness) for colour in names]
        near = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
        assert near > 11, near  # 2.3 is just noticeable


@pytest.mark.parametrize("ink", THEMES.values(), ids=THEMES)
def test_text_can_be_read_on_the_ground(ink: Ink) -> None:
    assert set(ink.categories) == set(CATEGORIES)
    for name in ("text", "muted", "alarm", "accent"):
        assert contrast(getattr(ink, name), ink.background) >= 4.5, name  # WCAG AA
    for phase in ink.phases.values():
        assert contrast(ink.muted, phase) >= 4.5
    for colour in ink.categories.values():
        assert contrast(readable_on(colour), colour) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_same_object_is_the_same_bytes(theme: str, kind: str, magic: bytes) -> None:
    one = house.picture(FOUND, draw, kind, theme)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False}):  # the user's own style
        assert house.picture(FOUND, draw, kind, theme) == one
    assert one.startswith(magic)


def test_a_png_has_200_dots_an_inch_and_the_themes_ground() -> None:
    import io

    from matplotlib.image import imread

    picture = imread(io.BytesIO(house.picture(FOUND, draw, "png", "dark")))
    assert picture.shape[:2] == (round(4.2 * 200), round(7.2 * 200))
    assert np.allclose(picture[0, 0, :3], to_rgb(THEMES["dark"].background), atol=1 / 255)


def test_the_callers_settings_come_back() -> None:
    before = dict(matplotlib.rcParams)
    house.drawn(FOUND, draw)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("words", [1, 30])
def test_titles_stay_inside_the_picture_and_above_the_axes(words: int) -> None:
    long = {"title": "quite-a-long-name-of-a-model " * words, "subtitle": "seq 2048, " * words * 2}
    figure = house.drawn({**FOUND, **long, "source": "x" * 60 * words}, draw)
    box, (axes,) = figure.bbox, figure.axes
    for text in figure.texts:
        extent = text.get_window_extent()
        assert box.x0 <= extent.x0 and extent.x1 <= box.x1
        assert box.y0 <= extent.y0 and extent.y1 <= box.y1
    title, subtitle, source = (text.get_window_extent() for text in figure.texts)
    legend = figure.legends[0].get_window_extent()
    assert title.y0 >= subtitle.y1 - 1 and subtitle.y0 >= legend.y1 - 1
    tight = axes.get_tightbbox()
    assert tight is not None
    assert legend.y0 >= tight.y1 - 1 and source.y1 <= tight.y0 + 1


def test_markup_and_control_characters_of_a_name_are_plain() -> None:
    figure = house.drawn({**FOUND, "title": "$x_1$ \x1b[31m\n<b>"}, draw)
    assert figure.texts[0].get_text() == "$x_1$ ?[31m?<b>"
    assert b"<b>" not in house.picture({**FOUND, "title": "<b>"}, draw, "svg")


def test_a_figure_knows_its_theme() -> None:
    for name in THEMES:
        figure = house.drawn(FOUND, draw, name)
        assert house.ink(figure) is house.theme_of(figure) is theme_named(name)
    with pytest.raises(ConfigError, match="--theme"):
        theme_named("pink")


def test_what_cannot_be_saved_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "x.gif", tmp_path / "nowhere" / "x.png", tmp_path):
        with pytest.raises(ConfigError):
            house.save(str(path), FOUND, draw)
    assert list(tmp_path.iterdir()) == []

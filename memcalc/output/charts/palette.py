"""Colours of every chart, on light and on dark: memory categories, phases, series, ink.

Categories take Okabe and Ito's eight colours, told apart with any kind of colour blindness (Color
Universal Design, jfly.uni-koeln.de/color), in the order of their share; what the allocator and the
driver add is grey. Dark takes lighter shades of the same hues. Checked by: unit/test_charts_house.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from memcalc.errors import unknown

#: Categories in the order they are stacked, bottom first: those of an estimate's breakdown, then what
#: makes driver-used bytes of them.
CATEGORIES: Final = (
    "parameters", "gathered", "gradients", "optimizer", "activations", "loss", "temporary",
    "buffers", "workspace", "rounding", "overhead", "communication", "context",
)  # fmt: skip
#: What a legend calls them, where the category's own name does not say it.
NAMES: Final = {
    "gathered": "gathered parameters", "rounding": "allocator rounding",
    "overhead": "reserved, not allocated", "communication": "communicators",
    "context": "CUDA context",
}  # fmt: skip
#: Patterns of areas: what is reserved and holds nothing looks like it.
HATCHES: Final = {"overhead": "////"}


class Ink(NamedTuple):
    """The colours of a theme. alarm: what does not fit; accent: the one line that matters; soft: areas
    behind the data; measured: what a run recorded, as opposed to what was computed."""

    name: str
    background: str
    text: str
    muted: str
    grid: str
    alarm: str
    accent: str
    soft: str
    measured: str
    categories: Mapping[str, str]
    phases: Mapping[str, str]
    series: tuple[str, ...]


LIGHT: Final = Ink(
    name="light", background="#ffffff", text="#16191d", muted="#5b6670", grid="#dfe3e7",
    alarm="#b3261e", accent="#0b5394", soft="#eef1f4", measured="#16191d",
    categories={
        "parameters": "#0072b2", "gathered": "#56b4e9", "gradients": "#e69f00",
        "optimizer": "#009e73", "activations": "#d55e00", "loss": "#f0e442",
        "temporary": "#cc79a7", "buffers": "#8a7f5c", "workspace": "#5d6670",
        "rounding": "#30363c", "overhead": "#c3c9cf", "communication": "#7f8b96",
        "context": "#a2abb4",
    },
    phases={
        "forward": "#e3eef8", "loss": "#fbf0d2", "backward": "#e9f3e4", "optimizer": "#f3e8f1",
    },
    series=(
        "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7f5c", "#16191d",
    ),
)  # fmt: skip
DARK: Final = Ink(
    name="dark", background="#14181d", text="#e9ecef", muted="#a3adb7", grid="#323a42",
    alarm="#ff8a80", accent="#7fb7ff", soft="#20272e", measured="#f4f6f8",
    categories={
        "parameters": "#3a97d4", "gathered": "#8accf2", "gradients": "#f0b429",
        "optimizer": "#2bbd90", "activations": "#ef7b2d", "loss": "#f4ea6a",
        "temporary": "#dc93bb", "buffers": "#b3a67c", "workspace": "#78838e",
        "rounding": "#dfe3e7", "overhead": "#4d5761", "communication": "#919ca7",
        "context": "#656f7a",
    },
    phases={
        "forward": "#20334a", "loss": "#4a3f1a", "backward": "#22402c", "optimizer": "#432d4a",
    },
    series=(
        "#3a97d4", "#ef7b2d", "#2bbd90", "#dc93bb", "#f0b429", "#8accf2", "#b3a67c", "#e9ecef",
    ),
)  # fmt: skip
THEMES: Final = {"light": LIGHT, "dark": DARK}


def theme_named(name: str) -> Ink:
    """The theme of this name. Raises ConfigError."""
    if name not in THEMES:
        raise unknown("--theme", name, THEMES)
    return THEMES[name]


def name_of(category: str) -> str:
    """What a legend calls a category."""
    return NAMES.get(category, category)

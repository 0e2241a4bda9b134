"""How the page looks and behaves: its style with the charts' colours, its script, what it may load.

A page is opened from disk and sent around, so it may load nothing and run only the script it came
with: the policy names both by their hash. Checked by: cli/test_report.py.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from memcalc.output.charts.palette import CATEGORIES, DARK, LIGHT, Ink

#: The page's own colours: behind the cards, lines, edges of controls, and the verdicts.
_OWN = {
    "light": {"ground": "#f4f6f8", "line": "#dfe3e7", "edge": "#7d8993", "good": "#1b6e3c",
              "warn": "#8a5a00", "bad": "#b3261e"},
    "dark": {"ground": "#0d1014", "line": "#2b333b", "edge": "#6d7883", "good": "#6fd39a",
             "warn": "#f2c14e", "bad": "#ff8a80"},
}  # fmt: skip
_SWAP = ".on-light{display:none !important}.on-dark{display:block !important}"


@cache
def style() -> str:
    """The style sheet, colours of both themes included: the system's, until the reader chooses."""
    dark = _variables(DARK)
    swatches = "".join(f".c-{name}{{background:var(--c-{name})}}" for name in CATEGORIES)
    chosen = "".join(f'[data-theme="dark"] {rule}}}' for rule in _SWAP.split("}") if rule)
    system = "".join(
        f':root:not([data-theme="light"]) {rule}}}' for rule in _SWAP.split("}") if rule
    )
    return "\n".join(
        (
            f":root{{{_variables(LIGHT)}}}",
            "@media screen and (prefers-color-scheme: dark)"
            f'{{:root:not([data-theme="light"]){{color-scheme:dark;{dark}}}}}',
            f'@media screen{{[data-theme="dark"]{{color-scheme:dark;{dark}}}}}',
            _file("report.css"),
            swatches,
            f"@media screen and (prefers-color-scheme: dark){{{system}}}",
            f"@media screen{{{chosen}}}",
        )
    )


def _variables(ink: Ink) -> str:
    named = {
        "card": ink.background, "text": ink.text, "muted": ink.muted, "soft": ink.soft,
        "accent": ink.accent, **_OWN[ink.name],
        **{f"c-{name}": colour for name, colour in ink.categories.items()},
    }  # fmt: skip
    return "".join(f"--{name}:{colour};" for name, colour in named.items())


@cache
def script() -> str:
    """The page's script."""
    return _file("report.js")


def policy() -> str:
    """The Content-Security-Policy: pictures inside the page, this style, this script, nothing else."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style())}'; "
        f"script-src '{_hash(script())}'; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8").strip()

"""Charts inside the page: each drawn twice, for light and for dark, in data URIs.

As images they have names of their own inside, so nothing clashes, and may be saved from the page. They
are SVG; one with thousands of marks (a schedule of hundreds of micro-batches) is a PNG. The words beside
a picture say what it shows. Checked by: cli/test_report.py.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any
from urllib.parse import quote

from memcalc.output.charts.house import Draw, picture
from memcalc.output.report.markup import esc
from memcalc.output.report.svg import smaller

_THEMES = ("light", "dark")
_BOX = re.compile(r'viewBox="0 0 (?P<width>[\d.]+) (?P<height>[\d.]+)"')
#: Characters of a data URI inside double quotes that need no escape; the browser takes the rest as %XX.
_SAFE = " !$'()*+,-./:;=?@_~"
_PT_TO_PX = 4 / 3


#: Bytes of an SVG above which the picture is a PNG.
_LARGE = 250_000


def figure(kind: str, chart: Mapping[str, Any]) -> str:
    """A chart with its caption. chart: {"finding", "object"} of planning/report_charts.py."""
    draw = import_module(f"memcalc.output.charts.{kind}").draw
    found, said = chart["object"], chart["finding"]
    alt = esc(f"{found['title']}. {said}")
    shown = "".join(_image(draw, found, theme, alt) for theme in _THEMES)
    return (
        f'<figure id="chart-{kind}">\n<div class="picture">{shown}</div>\n'
        f"<figcaption>{esc(said)}</figcaption>\n</figure>\n"
    )


def _image(draw: Draw, found: Mapping[str, Any], theme: str, alt: str) -> str:
    svg = smaller(picture(found, draw, "svg", theme).decode("utf-8"))
    box = _BOX.search(svg)
    assert box is not None
    width, height = (round(float(box[name]) * _PT_TO_PX) for name in ("width", "height"))
    return (
        f'<img class="on-{theme}" width="{width}" height="{height}" alt="{alt}" '
        f'src="{_uri(svg) if len(svg) <= _LARGE else _raster(picture(found, draw, "png", theme))}">'
    )


def _uri(svg: str) -> str:
    if "'" not in svg:
        svg = svg.replace('"', "'")  # which needs no escape
    return f"data:image/svg+xml,{quote(svg, safe=_SAFE)}"


def _raster(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"

"""Rows of the option table for `compare`, `chart` and `report`, and the kinds of chart.

These three take every option of a setup as well (`cli/option.py: SEVERAL`); how an option becomes a
list of values is in `cli/variants.py`.
"""

from __future__ import annotations

from typing import Any, Final

from memcalc.cli.option import SEVERAL, Option

#: Kind of chart -> what it shows. `cli/charts/KIND.py` makes what is drawn.
KINDS: Final = {
    "breakdown": "memory at the peak by category, beside what the GPU has",
    "timeline": "memory over the step, its phases and its peak",
    "sweep": "memory and tokens/s over one or two options",
    "compare": "models, GPUs and setups: memory, speed, cost",
    "roofline": "every operator under the device's roofs",
    "pipeline": "the schedule of the stages with its bubble",
    "scaling": "tokens/s and MFU over GPUs",
    "serving": "tokens/s and latency over batches, memory over contexts",
    "accuracy": "predicted against measured",
}
#: What `chart sweep` and `chart compare` can show of each setup.
VALUES: Final = (
    "memory", "requested", "allocated", "reserved", "headroom", "host", "tokens-per-s",
    "tokens-per-s-per-gpu", "mfu", "mfu-causal", "hfu", "step-time", "cost",
)  # fmt: skip
THEMES: Final = ("light", "dark")
_CHART: Final = ("chart",)
_COMPARE: Final = ("compare",)


def _comparison(name: str, kind: str, said: str, default: str = "", **more: Any) -> Option:
    """What is compared and how it is listed."""
    commands = more.pop("commands", SEVERAL)
    return Option(name, kind, "Comparison", said, default, commands=commands, **more)


def _chart(name: str, kind: str, said: str, default: str = "", **more: Any) -> Option:
    """What is drawn and how."""
    commands = more.pop("commands", _CHART)
    return Option(name, kind, "Chart", said, default, commands=commands, **more)


CHART_OPTIONS: Final = (
    _comparison("model", "name", "Models, as a list: a,b; in place of MODEL", "MODEL",
                commands=("compare", "chart", "import")),
    _comparison("setup", "many",
                'Options that go together, as "--fsdp --recompute full" or "NAME: --fsdp"; repeat it '
                "for each setup to compare"),
    _comparison("sort", "name", "Column to sort by; -COLUMN turns it round",
                "fits, then tokens/s a GPU", commands=_COMPARE),
    _comparison("columns", "names", "Columns to show, as memory,tokens-per-s,mfu-causal",
                "memory,fits,tokens-per-s,mfu",
                commands=_COMPARE),
    _comparison("top", "count", "Only the first N rows", "all; advise: 16; search: 10",
                commands=("compare", "chart", "advise", "search")),
    _comparison("step", "count", "Distance of neighbouring values of solve seq and solve context", "1",
                commands=("solve",)),
    _chart("x", "name", "Option along the x axis of a sweep", "the first list"),
    _chart("y", "name", "Option along the y axis of a sweep", "the second list"),
    _chart("value", "text", "What a sweep or comparison shows", "memory and tokens/s", choices=VALUES),
    _chart("strong", "flag", "Scaling at the same global batch (chart scaling)"),
    _chart("weak", "flag", "Scaling at the same batch of a GPU (chart scaling)", "weak"),
    _chart("record", "file", "Measured run to draw beside the estimate (chart timeline, accuracy)"),
    _chart("theme", "text", "Colours of a picture", "light", choices=THEMES,
           commands=("chart", "search")),
    Option("markdown", "flag", "Output", "Markdown table", commands=("compare", "chart", "search")),
)  # fmt: skip

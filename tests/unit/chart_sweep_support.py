"""What the tests of sweep and scaling charts share: objects from a command line, artists by name."""

from __future__ import annotations

import shlex

from memcalc.cli.app import parse_arguments
from memcalc.cli.charts.sweep import found as found_of

#: Two layers of gpt2 on a GPU of 3 GiB: part of the values fits.
GPT2 = "gpt2 --layers 2 --gpu h100 --attention eager"
MAP = f"{GPT2} --gpu-memory 3GiB --micro-batch 1,2,4,8 --seq 128..1k*2"
LINE = f"{GPT2} --gpu-memory 3GiB --seq 256 --micro-batch 1..16*2"


def made(words: str):
    return found_of(parse_arguments("chart", ["sweep", *shlex.split(words)]))


def panel(figure, key: str):
    """The axes of a panel: of a map by its mesh, of lines by its own name."""
    for axes in figure.axes:
        if axes.get_gid() == key or any(m.get_gid() == key for m in axes.collections):
            return axes
    raise AssertionError(key)


def gid(axes, name: str):
    return [artist for artist in axes.get_children() if artist.get_gid() == name]


def at(found, **labels: str):
    (row,) = [row for row in found["rows"] if row["labels"] == labels]
    return row

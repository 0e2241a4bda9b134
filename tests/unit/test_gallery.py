"""The gallery's pictures are of today's estimates, and its page is what the script writes."""

from __future__ import annotations

import json

import pytest

from benchmarks.gallery import (
    DIGESTS,
    GALLERY,
    PAGE,
    PICTURES,
    SEARCH,
    Picture,
    digest,
    found,
    page,
)
from memcalc.cli.chart_options import KINDS

_STALE = "python -m benchmarks.gallery"


def test_the_page_is_what_the_script_writes() -> None:
    assert PAGE.read_text() == page(), _STALE


def test_every_kind_has_a_picture_and_every_picture_a_place() -> None:
    assert {one.kind for one in GALLERY} == {*KINDS, SEARCH}
    assert {path.stem for path in PICTURES.glob("*.png")} == {one.name for one in GALLERY}
    assert list(json.loads(DIGESTS.read_text())) == [one.name for one in GALLERY]


@pytest.mark.parametrize("one", [one for one in GALLERY if not one.slow], ids=lambda one: one.name)
def test_a_picture_is_of_todays_estimate(one: Picture) -> None:
    assert digest(found(one)) == json.loads(DIGESTS.read_text())[one.name], _STALE

"""Printed bands hold nine of ten published runs that did not make them, and are not uselessly wide.

The errors are those of benchmarks/report/errors.jsonl; that they are today's is checked on a part of the
rows, of all rows with MEMCALC_DRAWS=all.
"""

from __future__ import annotations

import pytest

from benchmarks import time_bands
from memcalc.accuracy import bands
from memcalc.inputs.profiles import profiles_dir
from tests.draws import ALL

MAKERS = {time_bands.TIME: bands.by_class, time_bands.MEMORY: bands.one_for_all}
#: Median high - low over the prediction at most: without a source, and with nine parts of ten.
WIDEST = {time_bands.TIME: (0.50, 0.30), time_bands.MEMORY: (0.25, 0.25)}
ROWS = {time_bands.TIME: 194, time_bands.MEMORY: 68}
#: Rows priced anew in a run of the tests: one of so many.
OF = 1 if ALL else 9


@pytest.mark.parametrize("band", MAKERS)
def test_nine_of_ten_rows_lie_inside_bands_made_without_them(band: str) -> None:
    found = bands.coverage(time_bands.recorded()[band], MAKERS[band])
    for how, widest in zip(("sources", "parts"), WIDEST[band], strict=True):
        assert found[how]["n"] == ROWS[band]
        assert found[how]["share"] >= 0.9, (how, found[how])
        assert found[how]["width"] <= widest, (how, found[how])


def test_the_files_are_made_of_these_errors() -> None:
    for name, text in time_bands.texts(time_bands.recorded()).items():
        assert (profiles_dir() / "bands" / name).read_text("utf-8") == text, name


def test_the_errors_are_todays() -> None:
    today = time_bands.priced(OF)
    for band, runs in time_bands.recorded().items():
        held = {run.id: run for run in runs}
        assert len(today[band]) >= len(runs) // OF // 2
        for run in today[band]:
            one = held[run.id]
            assert run.factor == pytest.approx(one.factor, abs=2e-6), run.id
            assert run.open == pytest.approx(one.open, abs=2e-6), run.id
            assert (run.source, run.stack, run.tier) == (one.source, one.stack, one.tier)

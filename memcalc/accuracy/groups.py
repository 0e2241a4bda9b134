"""Groups in which errors are counted: a model's size, a GPU's type, how many; fitted or evaluated.

Which published sources anything in memcalc was fitted to is stated once, here; their rows are scored
apart and never count as evidence. Checked by: unit/test_accuracy_groups.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from memcalc.accuracy.adapters import with_adapters
from memcalc.accuracy.pricing import Pair
from memcalc.accuracy.rows import Row
from memcalc.accuracy.setups import SAME_CHIP

#: Published sources that a constant of memcalc was fitted to: at most a third of them.
FITTED_SOURCES: Final[tuple[str, ...]] = (
    "SimuMax B200 real runs",
    "nanotron Ultra-Scale Playbook",
)
MOST_FITTED: Final = 1 / 3
#: GPUs whose default calibration is fitted on measured kernels: throughput is promised on these.
BOUND_GPUS: Final = ("a100", "h100", "b200")
#: Error from which a row is named as an outlier, in percent.
OUTLIER_PCT: Final = 25.0
_SIZES: Final = ((1e9, "below 1 B"), (1e10, "1 to 10 B"), (1e11, "10 to 100 B"))
_LARGEST: Final = "100 B and more"
_COUNTS: Final = ((1, "1"), (8, "2 to 8"), (64, "9 to 64"), (512, "65 to 512"))
_MOST: Final = "more than 512"
NOT_STATED: Final = "not stated"
#: Classes in the order they are shown; every other value stands by its name.
ORDER: Final = (*(name for _, name in _SIZES), _LARGEST, *(name for _, name in _COUNTS), _MOST)


def size_class(pair: Pair) -> str:
    """The class of a model by its parameters."""
    if pair.parameters is None:
        return NOT_STATED
    return next((name for most, name in _SIZES if pair.parameters < most), _LARGEST)


def count_class(row: Row) -> str:
    """The class of a run by its GPUs."""
    count = row.whole("n_gpus")
    if count is None:
        return NOT_STATED
    return next((name for most, name in _COUNTS if count <= most), _MOST)


def gpu_type(pair: Pair) -> str:
    """The row's own word for its GPU."""
    return pair.row.text("gpu") or NOT_STATED


def is_fitted(row: Row) -> bool:
    """Whether something in memcalc was fitted to the row's source."""
    return row.source in FITTED_SOURCES


def is_promised(pair: Pair) -> bool:
    """Whether the accuracy promised of throughput covers a figure.

    Training of every weight on an A100, H100 or B200 as sold, of a row that is trusted and holds all
    that decides it, from a source nothing was fitted to.
    """
    row = pair.row
    stated = row.text("gpu") or ""
    return (
        pair.what == "throughput"
        and row.text("priceable") == "yes"
        and row.text("confidence") == "high"
        and row.text("run") in (None, "train", "finetune")
        and not with_adapters(row)
        and stated not in SAME_CHIP
        and any(stated.startswith(name) for name in BOUND_GPUS)
        and not is_fitted(row)
    )


def outliers(pairs: Iterable[Pair]) -> list[Pair]:
    """Scored figures further out than OUTLIER_PCT, the furthest first."""
    far = [pair for pair in pairs if pair.scored and abs(pair.error) > OUTLIER_PCT / 100]
    return sorted(far, key=lambda pair: -abs(pair.error))

"""The published rows: whole, as their README counts them, and every one priced or left with a reason."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from memcalc import TrainingSetup, estimate
from memcalc.accuracy.models import model_of
from memcalc.accuracy.notes import NotExpressedError
from memcalc.accuracy.rows import Row, published_rows, read_rows

FILE = read_rows(published_rows())
ROWS = FILE.rows
README = (published_rows().parent / "README.md").read_text("utf-8")
#: Rows whose source prints the parameters of its model, one of each model.
_COUNTED = {row.text("model"): row for row in ROWS if row.whole("parameters")}


def test_every_row_has_an_id_a_source_and_a_place_where_it_is_printed() -> None:
    assert len(ROWS) == 453 and len({row.id for row in ROWS}) == 453
    assert all(row.text("id") and row.text("source") and row.text("ref") for row in ROWS)
    assert FILE.notes == []


def test_every_row_measured_something_and_says_how_sure_it_is() -> None:
    for row in ROWS:
        assert row.text("confidence") and row.text("priceable") and row.text("run"), row.id
        memory = row.number("mem_gb") is not None
        assert memory == (row.text("mem_kind") is not None) == (row.text("mem_rank") is not None)
        assert (row.text("why_not") is not None) == (row.text("priceable") != "yes"), row.id


def test_the_readme_counts_the_rows_of_each_source() -> None:
    counted = dict(re.findall(r"^\| ([^|]+?) +\| +(\d+) \|", README, re.MULTILINE))
    assert {name: int(n) for name, n in counted.items()} == Counter(row.source for row in ROWS)


def test_the_readme_explains_every_column() -> None:
    header = published_rows().read_text("utf-8").splitlines()[0].split(",")
    unexplained = [name for name in header if f"`{name}`" not in README]
    assert not unexplained


def test_degrees_multiply_to_the_gpus() -> None:
    for row in ROWS:
        degrees = [row.whole(name) for name in ("tp", "pp", "cp", "dp")]
        if row.whole("n_gpus") and all(degrees):
            tp, pp, cp, dp = (degree or 1 for degree in degrees)
            assert tp * pp * cp * dp == row.whole("n_gpus"), row.id


def test_batches_multiply_to_the_global_one() -> None:
    for row in ROWS:
        micro, steps, dp = (row.whole(name) for name in ("micro_batch", "grad_accum", "dp"))
        if micro and steps and dp and row.whole("global_batch"):
            assert micro * steps * dp == row.whole("global_batch"), row.id


def test_stated_stages_hold_every_layer() -> None:
    staged = [row for row in ROWS if row.wholes("stage_layers")]
    assert staged
    for row in staged:
        layers = row.wholes("stage_layers") or ()
        assert sum(layers) == row.whole("num_hidden_layers") and len(layers) == row.whole("pp")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_every_model_is_built_or_says_why_not(row: Row) -> None:
    try:
        config, _ = model_of(row)
    except NotExpressedError as error:
        assert row.text("family") in ("t5", "phi"), f"{row.id}: {error}"
        return
    assert config.num_hidden_layers == row.whole("num_hidden_layers")


@pytest.mark.parametrize("name", sorted(filter(None, _COUNTED)))
def test_parameters_equal_the_count_the_source_prints(name: str) -> None:
    row = _COUNTED[name]
    config, _ = model_of(row)
    setup = TrainingSetup(seq_len=row.whole("seq"), recompute="full", precision="bf16")
    counted = estimate(config, setup, allocator=False).model.parameters
    assert counted == row.whole("parameters")


_NAMED_SIZE = re.compile(r"^nanotron-llama-([0-9.]+)B")


@pytest.mark.parametrize(
    "name", sorted({m[0] for row in ROWS if (m := _NAMED_SIZE.match(row.text("model") or ""))})
)
def test_parameters_agree_with_the_size_in_a_models_name(name: str) -> None:
    row = next(row for row in ROWS if (row.text("model") or "").startswith(name))
    config, _ = model_of(row)
    setup = TrainingSetup(seq_len=4096, recompute="full", precision="bf16")
    counted = estimate(config, setup, allocator=False).model.parameters
    assert counted / 1e9 == pytest.approx(float(_NAMED_SIZE.match(name)[1]), rel=0.005)  # type: ignore[index]

"""Memory of a source that says neither kind nor unit, read by what its own table rules out."""

from __future__ import annotations

import pytest

from memcalc.accuracy.pricing import FIELDS, UNITS, Priced, price_row
from memcalc.accuracy.readings import READINGS, held_against, unit_of
from memcalc.accuracy.report import report
from memcalc.accuracy.rows import published_rows, read_rows
from memcalc.units import GIB
from tests.unit.accuracy_rows import row

QWEN = {"source": "Qwen-1 finetune profile", "mem_kind": "unknown", "mem_unit": "unknown"}


def test_a_reading_gives_the_unit_and_what_a_figure_is_held_against() -> None:
    (read,) = price_row(row(**QWEN, gpu="a100-80gb-sxm"))
    (plain,) = price_row(row(**{**QWEN, "source": "mine"}, gpu="a100-80gb-sxm"))
    assert (read.kind, read.scored) == (plain.kind, plain.scored) == ("unknown", False)
    assert read.measured / plain.measured == pytest.approx(10**9 / GIB)
    assert read.predicted > plain.predicted
    assert any("10^9" in said for said in read.assumed) and "unit not stated: GiB" in plain.assumed
    found = report(Priced([read, plain], [], []), "mine", {})["rows"]
    assert [one["held_against"] for one in found] == ["reserved", "allocated"]


def test_what_a_row_states_is_taken_as_stated() -> None:
    stated = row(**{**QWEN, "mem_kind": "nvidia-smi", "mem_unit": "MiB"})
    assert held_against(stated) == "nvidia-smi" and unit_of(stated) == ("MiB", None)
    assert held_against(row(source="mine", mem_kind="unknown")) == "allocated"


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_names_known_words_and_a_source_of_the_table(name: str) -> None:
    read = READINGS[name]
    assert read.unit in UNITS and read.kind in FIELDS
    assert any(name in each.source for each in read_rows(published_rows()).rows)


def test_no_card_has_what_the_table_would_say_in_gib() -> None:
    """Full fine-tuning of Qwen-7B: 81.0 a card, of cards with 80 GiB."""
    rows = [each for each in read_rows(published_rows()).rows if "Qwen-1 finetune" in each.source]
    most = max(each.number("mem_gb") or 0 for each in rows)
    assert most * GIB > 80 * GIB > most * UNITS[READINGS["Qwen-1 finetune"].unit]


def test_its_figures_grow_by_more_than_tensors_do() -> None:
    """From 512 to 1,024 tokens: full fine-tuning against LoRA, the same model and checkpoints."""
    rows = {each.id: each for each in read_rows(published_rows()).rows}

    def grown(short: str, long: str) -> float:
        return (rows[long].number("mem_gb") or 0) - (rows[short].number("mem_gb") or 0)

    assert grown("R6e6ef384", "Rdf316ce5") > 6 * grown("Rf7f92756", "R5898d48b") > 0

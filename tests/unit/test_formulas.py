"""docs/formulas.md is what the generator writes, and its letters and totals are those of the ledger."""

from __future__ import annotations

import re

from benchmarks.formulas import BLOCKS, LETTERS, PAGE, SETUP, page, unknown_letters
from memcalc import TrainingSetup, estimate
from memcalc.engine.explain import explain


def test_the_page_is_what_the_ledger_says_today() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m benchmarks.formulas"


def test_every_letter_of_a_formula_is_in_the_legend() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert unknown_letters(text) == set() and unknown_letters("| x | 2 b q |") == {"q"}
    assert all(f"| {letter} | " in text for letter in LETTERS)


def test_a_blocks_sum_of_kept_tensors_is_the_estimates_bytes_a_layer() -> None:
    found = estimate("llama-3.1-8b", TrainingSetup(**SETUP))
    values = explain("llama-3.1-8b", TrainingSetup(**SETUP)).dims
    text = PAGE.read_text(encoding="utf-8").partition(BLOCKS[0][1])[2]
    formula = re.search(r"\| \*\*all\*\* \| \*\*(.+?)\*\* \|", text)
    assert formula is not None
    total = 0
    for term in formula[1].split(" + "):
        number, *letters = term.split()
        size = int(number)
        for letter in letters:
            size *= values[letter]
        total += size
    assert total == found.memory.saved_per_layer_bytes

"""The records of exact comparisons: today's engine and closed forms say what they hold.

A part of the configurations of every file; all of them with MEMCALC_DRAWS=all. The oracle's side is what
tests/oracle runs; one of each of some files is asked again here.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from benchmarks.exact_records import FILES, changed, lines, main, recorded  # noqa: E402
from tests.draws import ALL  # noqa: E402

#: Of how many configurations of a file one is asked.
OF = {
    "profiles": 5, "widths": 8, "saved": 50, "peaks": 25, "ranks": 9, "families": 10, "encoders": 10,
    "caches": 3, "generations": 12, "adapters": 20, "autocast": 9, "packed": 18, "tuned_ranks": 8,
    "feedback": 15, "compiled": 40, "phases": 12, "evaluations": 15, "loads": 2, "phase_ranks": 9,
}  # fmt: skip


def test_predictions_are_those_recorded() -> None:
    """Every file: the configurations drawn today are those recorded, and a part is predicted again."""
    assert set(OF) == set(FILES)
    found = [line for name, of in OF.items() for line in changed(name, 1 if ALL else of)]
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("name", ["families", "peaks", "packed", "feedback", "evaluations"])
def test_an_oracle_counts_again_what_it_counted(name: str) -> None:
    case = next(iter(FILES[name]()))
    held = {(row["class"], row["name"]): row for row in recorded(name)}
    for line in lines(case):
        row = held[line["class"], line["name"]]
        assert (line["oracle"], line["config"]) == (row["oracle"], row["config"])


def test_an_unknown_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["nothing"])
    assert error.value.code == 2 and "valid: profiles" in capsys.readouterr().err

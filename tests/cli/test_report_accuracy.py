"""memcalc accuracy --report: the same bytes every time; what needs no pricing is as in the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from memcalc.__main__ import main
from tests.draws import ALL

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "benchmarks" / "REPORT.md"
#: Sections of records alone, the same in the short form.
OF_RECORDS = ("Exact: held against an oracle", "A GPU of our own", "Time on a CPU", "Kernels",
              "Held by tests", "The textbook", "To make this file again")  # fmt: skip


def sections(text: str) -> dict[str, str]:
    """Title -> the section."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0]: part for part in parts}


def written(folder: Path, *options: str) -> dict[str, bytes]:
    """What a run writes, by path."""
    assert main(["accuracy", "--report", "-q", "--out", str(folder), *options]) == 0
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_runs_write_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = written(tmp_path / "one", "--short")
    assert capsys.readouterr().out.strip().endswith("pictures")
    second = written(tmp_path / "two", "--short", "--json")
    assert first == second
    assert set(first) == {
        "REPORT.md",
        *(f"report/{n}.png" for n in ("classes", "exact", "published")),
    }
    short, whole = sections(first["REPORT.md"].decode()), sections(REPORT.read_text("utf-8"))
    assert short.keys() <= whole.keys()
    for title in OF_RECORDS:
        assert short[title] == whole[title], title
    assert "no evidence" in first["REPORT.md"].decode().partition("##")[0]
    _has_every_class(json.loads(capsys.readouterr().out))


def _has_every_class(found: dict[str, Any]) -> None:
    groups = {one["group"] for one in found["classes"]}
    assert {"A GPU of our own", "Serving", "Speed of published runs"} <= groups
    assert all(one["n"] == 0 for one in found["classes"] if one["group"] == "A GPU of our own")


@pytest.mark.skipif(not ALL, reason="prices every published row: MEMCALC_DRAWS=all")
def test_the_report_of_the_repository_is_todays(tmp_path: Path) -> None:
    made = written(tmp_path)
    assert made["REPORT.md"].decode() == REPORT.read_text("utf-8")
    for name, picture in made.items():
        assert (REPORT.parent / name).read_bytes() == picture, name


def test_pictures_of_the_report_are_there() -> None:
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", REPORT.read_text("utf-8"))
    assert len(shown) == 4 and all((REPORT.parent / path).is_file() for path in shown)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--report", "--csv"], "--csv: got --report too"),
        (["--report", "--source", "MPT"], "--source: got --report too"),
        (["--short"], "--short: got no --report"),
        (["--report", "--short", "--out", "/dev/null"], "--out: got '/dev/null'; rule: a folder"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["accuracy", *options]) == 2
    assert said in capsys.readouterr().err


def test_an_installed_memcalc_says_what_it_has_instead(memcalc, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from memcalc.accuracy.proof import records

    monkeypatch.setattr(
        records, "__file__", str(tmp_path / "site/memcalc/accuracy/proof/records.py")
    )
    monkeypatch.chdir(tmp_path)
    said = memcalc("accuracy", "--report", "-o", "here").error
    assert "in a checkout of the repository" in said and "nearest valid: memcalc accuracy" in said
    assert not (tmp_path / "here").exists()

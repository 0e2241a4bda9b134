"""The short mode of fuzzing: the same examples on every run; and that its oracle sees what is wrong.

Long runs: `python -m tests.fuzz.run`, docs/fuzzing.md. A run of the tests takes some of the examples.
"""

from __future__ import annotations

import json
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memcalc.errors import ConfigError
from memcalc.inputs import engines, stacks, weights
from tests import draws
from tests.fuzz import oracle, seeds
from tests.fuzz.byte_random import ByteRandom
from tests.fuzz.oracle import Case
from tests.fuzz.run import drawn
from tests.fuzz.targets import TARGETS
from tests.fuzz.values import changed

#: Examples of a target: a few hundred, of which a usual run takes fewer.
EXAMPLES = 300 if draws.ALL else 30


@pytest.fixture(scope="module", autouse=True)
def box() -> Iterator[Path]:
    """One folder for all examples; a case leaves it empty."""
    with tempfile.TemporaryDirectory() as folder, oracle.sandbox(Path(folder)) as work:
        platform.platform()  # which asks `uname` once
        oracle.run(Case(["estimate", "gpt2", "--layers", "1"]), work)  # whatever is imported late
        yield work


@pytest.mark.parametrize("target", TARGETS)
def test_no_drawn_input_ends_badly(target: str, box: Path) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def holds(chance: random.Random) -> None:
        case = TARGETS[target][0](chance)
        ended, found = oracle.run(case, box, 60.0)
        assert found is None, (found, case.words, ended.err)

    holds()


@pytest.mark.parametrize("kind", ["stacks", "engines", "weights"])
def test_a_broken_profile_of_the_package_is_one_line(
    kind: str, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users name these and cannot pass files, but whoever adds one makes mistakes."""
    file = box / "x.toml"
    for module in ("stacks", "engines"):
        monkeypatch.setattr(f"memcalc.inputs.{module}.find_profile", lambda *words: file)
    read: dict[str, Callable[[], object]] = {
        "stacks": lambda: stacks._shipped.__wrapped__("x"),
        "engines": lambda: engines.load_engine.__wrapped__("x"),
        "weights": lambda: weights.formats_of(file),
    }
    names = sorted(path.stem for path in (seeds.PROFILES / kind).glob("*.toml"))
    refused = 0
    for number in range(2 * EXAMPLES):
        chance = random.Random(f"{kind}/{number}")
        file.write_text(seeds.toml(changed(chance, seeds.load(kind, chance.choice(names)))))
        try:
            read[kind]()
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error)
    file.unlink()
    assert refused > EXAMPLES / 4


#: Inputs of long runs that ended badly once, by what was wrong with the program.
_ONCE = {
    "notes of a profile that are a number": ("device", 0, 64),
    "a count of thousands of digits": ("words", 0, 608),
    "a default calibration whose architectures are numbers": ("calibration", 0, 15),
    "constants that are texts": ("calibration", 0, 136),
    "an estimate without its parts": ("results", 0, 28),
    "a record whose memory is a number": ("records", 0, 34),
    "a record whose phases are none": ("records", 0, 113),
    "a kernel choice that is a table": ("records", 0, 7),
    "a table of products that is a number": ("calibration", 1, 0),
    "a device without a rate": ("device", 1, 112),
    "a device with fp16 alone": ("device", 2, 8300),
    "a rate of 1e-300": ("device", 2, 7861),
    "a bandwidth of 5e-324": ("device", 2, 3626),
    "a device without its torch": ("records", 2, 1370),
    "a comparison without rows": ("records", 2, 1910),
    "a price's date that is a table": ("device", 2, 3817),
    "a comparison whose rows are null": ("records", 5, 502),
    "a run that did not end well and lacks its sizes": ("records", 11, 2988),
    "a share above 1": ("calibration", 8, 3003),
    "seconds of an optimizer that are a text": ("calibration", 2, 396),
}


@pytest.mark.parametrize("target, seed, number", _ONCE.values(), ids=_ONCE.keys())
def test_what_ended_badly_once_ends_well(target: str, seed: int, number: int, box: Path) -> None:
    ended, found = oracle.run(drawn(target, seed, number), box, 60.0)
    assert found is None and ended.status in (0, 2, 3), (found, ended)


def _raises(error: BaseException) -> Callable[[list[str]], int]:
    def act(words: list[str]) -> int:
        raise error

    return act


def _says(status: int, out: str = "", err: str = "") -> Callable[[list[str]], int]:
    def act(words: list[str]) -> int:
        print(out, end="")
        print(err, end="", file=sys.stderr)
        return status

    return act


def _spins(words: list[str]) -> int:
    while True:
        pass


def _writes(words: list[str]) -> int:
    with open("/tmp/memcalc-fuzz-outside", "w"):
        return 0


def _starts(words: list[str]) -> int:
    return subprocess.run(["true"]).returncode


_WRONG: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "an error of ours": (_raises(RuntimeError("x")), "status 1"),
    "memory": (_raises(MemoryError()), "status 1"),
    "recursion": (_raises(RecursionError()), "status 1"),
    "a status nobody documents": (_says(7), "status 7"),
    "a refusal without a line": (_says(2), "not one error line"),
    "two lines": (_says(2, err="error: this and that\nerror: more of it\n"), "not one error line"),
    "an error and a status of 0": (_says(0, err="error: this and that\n"), "beside a result"),
    "a result and a refusal": (_says(2, "half\n", "error: this and that\n"), "with a result"),
    "an escape sequence": (_says(0, "\x1b[31m\n"), "control characters on stdout"),
    "no JSON": (_says(0, "{'a': 1}\n"), "no JSON"),
    "NaN": (_says(0, '{"a": NaN}\n'), "no JSON"),
    "an endless loop": (_spins, "hang"),
    "a file elsewhere": (_writes, "outside"),
    "a process": (_starts, "outside"),
}


@pytest.mark.parametrize("act, kind", _WRONG.values(), ids=_WRONG.keys())
def test_the_oracle_sees_what_is_wrong(
    act: Callable[[list[str]], int], kind: str, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memcalc.__main__._dispatch", act)
    _, found = oracle.run(Case(["doctor", "--json"]), box, 0.3)
    assert found is not None and kind in found.kind
    assert not Path("/tmp/memcalc-fuzz-outside").exists()


def test_the_oracle_sees_a_formula(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcalc.__main__._dispatch", _says(0, "a,b\n-1.5,=1+1\n"))
    _, found = oracle.run(Case(["compare", "--csv"]), box)
    assert found == oracle.Find("a formula in CSV", "=1+1")


def test_bytes_decide_what_is_drawn_and_an_end_of_them_ends_it() -> None:
    assert [ByteRandom(b"").random(), ByteRandom(b"").randrange(9)] == [0.0, 0]
    same = [TARGETS["config"][0](ByteRandom(bytes(range(200)))) for _ in range(2)]
    assert same[0] == same[1]
    chance = random.Random(1)
    kinds = {TARGETS["words"][0](ByteRandom(chance.randbytes(400))).words[0] for _ in range(60)}
    assert len(kinds) > 8


def test_the_driver_counts_its_inputs() -> None:
    root = Path(__file__).parents[2]
    words = [
        "--inputs",
        "24",
        "--target",
        "config",
        "--target",
        "settings",
        "--seed",
        "3",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", *words], cwd=root, capture_output=True, text=True
    )
    figures = json.loads(done.stdout)
    assert done.returncode == 0 and figures["finds"] == [], done.stderr
    assert figures["inputs"] == 24 and set(figures["targets"]) == {"config", "settings"}
    assert sum(sum(row["status"].values()) for row in figures["targets"].values()) == 24

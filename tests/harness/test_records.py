"""Records survive what happens to writers: kills, full disks, two at once, broken lines."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.errors import ConfigError
from memcalc.harness import records
from memcalc.harness.record_head import new_record, planned, stated
from memcalc.inputs.models import load_model
from memcalc.inputs.training import TrainingSetup

#: Forks a writer for every line it reads (path, name, first, last, short) and says its process id. A
#: writer appends records of 4 to 100 KB and says each one's number once `append` has returned. short:
#: its writes come back short, as they may, so that a kill finds half a line.
_WRITERS = """
import os, random, sys
from memcalc.harness.records import append
def write(path, name, number, last, short):
    draw, whole = random.Random(name + str(number)), os.write
    if short:
        os.write = lambda handle, data: whole(handle, data[:64])
    while number < last:
        steps = [0.125] * draw.randrange(600, 16_000)
        append(path, {"schema": 1, "writer": name, "number": number, "step_s": steps})
        whole(1, f"{number}\\n".encode())
        number += 1

for line in sys.stdin:
    path, name, first, last, short = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        write(path, name, int(first), int(last), short == "short")
        os._exit(0)
    os.write(1, f"process {child}\\n".encode())
    _, status = os.waitpid(child, 0)
    os.write(1, f"over {status}\\n".encode())
"""
#: At least so many kills, and more where a slow disk leaves few of them at work on a line.
_KILLS, _MOST_KILLS = 50, 500


class _Writers:
    """The forking process: one writer at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITERS],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.numbers: list[int] = []

    def start(self, path: Path, name: str, numbers: tuple[int, int], short: bool) -> None:
        assert self.process.stdin is not None
        how = "short" if short else "whole"
        self.process.stdin.write("\t".join(map(str, (path, name, *numbers, how))) + "\n")
        self.process.stdin.flush()

    def said(self) -> str:
        """The next line; a record's number is noted."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if line.isdigit():
            self.numbers.append(int(line))
        return line

    def kill_after(self, pause_s: float) -> None:
        """Kill the writer some time after its first record, and hear out what it had said."""
        child = 0
        while not (child and self.numbers):
            word, _, number = self.said().partition(" ")
            child = int(number) if word == "process" else child
        time.sleep(pause_s)
        os.kill(child, signal.SIGKILL)
        self.until_over(signal.SIGKILL)

    def until_over(self, status: int = 0) -> None:
        while not (line := self.said()).startswith("over"):
            assert line
        assert line == f"over {status}"

    def close(self) -> None:
        self.process.communicate(timeout=20)
        assert self.process.returncode == 0


def _one(**more: object) -> dict[str, object]:
    return {"schema": 1, "kind": "measure", **more}


def test_a_writer_killed_at_random_moments_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    draw, writers, cut, count = random.Random(7), _Writers(), 0, 0
    for kill in range(_MOST_KILLS):
        if kill >= _KILLS and kill % 10 == 0 and cut >= 3:
            break
        if kill % 10 == 0:  # a fresh file, for reading it all again each time is what takes long
            path, first, acknowledged = tmp_path / f"{kill}.jsonl", 0, set[int]()
        writers.numbers = []
        writers.start(path, "w", (first, 1 << 40), short=kill % 2 == 1)
        writers.kill_after(draw.uniform(0, 0.02))
        count += len(writers.numbers)
        acknowledged.update(writers.numbers)
        cut += not path.read_bytes().endswith(b"\n")
        found = records.read_file(path)
        assert not found.broken
        numbers = [record["number"] for record in found.records]
        assert acknowledged <= set(numbers) and len(set(numbers)) == len(numbers)
        first = max(numbers) + 1
        if kill % 10 == 9:
            records.append(path, _one(last=True))
            assert path.read_bytes().endswith(b"\n")
            assert all(json.loads(line)["schema"] == 1 for line in path.read_bytes().splitlines())
    writers.close()
    assert count >= _KILLS and cut >= 3, "no kill found a writer at work on a line"


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path, each = tmp_path / "records.jsonl", 60
    both = {name: _Writers() for name in "ab"}
    for name, writers in both.items():  # nothing yet: both have started and imported what they need
        writers.start(path, name, (0, 0), short=True)
        writers.until_over()
    for name, writers in both.items():
        writers.start(path, name, (0, each), short=True)
    for writers in both.values():
        writers.until_over()
        writers.close()
    found = records.read_file(path)
    assert not found.broken
    for name in "ab":
        assert [r["number"] for r in found.records if r["writer"] == name] == list(range(each))
    order = [r["writer"] for r in found.records]
    assert order != sorted(order), "the writers ran one after the other; nothing was shown"


def test_a_partial_tail_is_passed_over_and_cut_by_the_next_append(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records.append(path, _one(n=1))
    whole = path.read_bytes()
    for length in (1, 5, len(whole) - 2):
        path.write_bytes(whole + whole[:length])
        assert [r["n"] for r in records.read(path)] == [1]
        records.append(path, _one(n=2))
        assert [r["n"] for r in records.read(path)] == [1, 2]
        assert path.read_bytes().count(b"\n") == 2


def test_a_tail_longer_than_one_read_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records.append(path, _one(n=1))
    path.write_bytes(path.read_bytes() + b'{"schema":1,"x":"' + b"y" * 300_000)
    records.append(path, _one(n=2))
    assert [r["n"] for r in records.read(path)] == [1, 2]


def test_a_whole_record_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records.append(path, _one(n=1))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [r["n"] for r in records.read(path)] == [1]
    records.append(path, _one(n=2))
    assert [r["n"] for r in records.read(path)] == [1, 2]


def test_broken_lines_are_reported_by_number_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    good = json.dumps(_one(n=1)).encode()
    lines = [good, b"{half", b"", b"[1]", b'{"n": 3}', b"\x00\xff\x00", b'{"schema": true}', good]
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = records.read_file(path)
    assert [r["n"] for r in found.records] == [1, 1]
    assert [line.number for line in found.broken] == [2, 4, 5, 6, 7]
    assert [line.reason for line in found.broken][:3] == [
        "not JSON", "not an object", "without a schema number",
    ]  # fmt: skip


def test_a_newer_schema_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records.append(path, _one())
    with path.open("a") as file:
        file.write('{"schema": 2}\n')
    with pytest.raises(ConfigError, match=r"schema 2 in line 2 .*at most 1"):
        records.read(path)


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records.append(path, _one(time={"step_s": (math.nan, 1.5, math.inf)}, name="a\nb\u2028é"))
    assert b"NaN" not in path.read_bytes() and path.read_bytes().isascii()
    (record,) = records.read(path)
    assert record["time"]["step_s"] == [None, 1.5, None] and record["name"] == "a\nb\u2028é"


def test_what_json_cannot_say_is_our_mistake_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(TypeError, match="got a PosixPath"):
        records.append(path, _one(where=Path("x")))
    with pytest.raises(ValueError, match="schema"):
        records.append(path, {"kind": "measure"})
    assert not path.exists()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "r.jsonl", os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    records.append(path, _one(n=1))
    assert records.read(path) == [_one(n=1)]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "r.jsonl", os.write
    records.append(path, _one(n=1))
    before = path.read_bytes()

    def full(handle: int, data: bytes) -> int:
        if len(data) < 30:
            raise OSError(28, "No space left on device")
        return write(handle, data[:20])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        records.append(path, _one(n=2))
    assert path.read_bytes() == before


def test_paths_that_cannot_hold_records_are_refused_in_one_line(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    file = tmp_path / "file"
    file.write_text("")
    for path, said in (
        (tmp_path, "got directory"), (pipe, "no regular file"), (Path("/dev/null"), "no regular"),
        (tmp_path / "none" / "r.jsonl", "No such file"), (file / "r.jsonl", "Not a directory"),
        ("a\0b", "file name"),
    ):  # fmt: skip
        for act in (records.prepare, lambda path: records.append(path, _one())):
            with pytest.raises(ConfigError, match=said) as caught:
                act(path)  # type: ignore[operator]
            assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read"):
        records.read(tmp_path / "missing.jsonl")
    with pytest.raises(ConfigError, match="cannot read"):
        records.read(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records.append(path, _one())
    path.chmod(0o400)
    with pytest.raises(ConfigError, match="Permission denied"):
        records.append(path, _one())


def test_prepare_makes_the_file_and_mends_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    records.prepare(path)
    assert path.read_bytes() == b"" and records.read(path) == []
    path.write_bytes(b'{"sch')
    records.prepare(path)
    assert path.read_bytes() == b""


def test_the_users_file_lies_in_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "deep"))
    path = records.user_records()
    assert path == tmp_path / "deep" / "memcalc" / "records.jsonl" and path.parent.is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot make"):
        records.user_records()


@pytest.mark.parametrize("name", ["llama-3.2-1b", "gpt2", "mixtral-8x7b", "deepseek-v2-lite"])
def test_a_records_setup_gives_the_same_plan_again(name: str) -> None:
    setup = TrainingSetup(
        seq_len=128, num_layers=2, recompute="full", recompute_layers=1, dropout=0.0, loss="fp32"
    )
    plan = plan_of(load_model(name), setup, {"device": "cpu", "norm": "decomposed"})
    again = planned(json.loads(json.dumps(records.finite(stated(plan)))))
    assert again.config == plan.config
    assert again.kernels == plan.kernels and again.values == plan.values
    assert step_memory(again).peak_bytes == step_memory(plan).peak_bytes


def test_a_setup_of_a_newer_version_is_refused() -> None:
    plan = plan_of(load_model("gpt2"), TrainingSetup(seq_len=64))
    setup = stated(plan)
    setup["training"] = {**setup["training"], "warp": 9}
    with pytest.raises(ConfigError, match=r"TrainingSetup\.warp"):
        planned(setup)
    with pytest.raises(ConfigError, match="not readable"):
        planned({"model": {}})


def test_a_new_record_says_who_when_and_what() -> None:
    plan = plan_of(load_model("gpt2"), TrainingSetup(seq_len=64))
    record = new_record("measure", plan)
    assert record["schema"] == records.SCHEMA and record["kind"] == "measure"
    assert record["status"] == "failed" and record["date"].endswith("+00:00")
    assert record["setup"]["model"]["name"] == "gpt2"
    git = record["git"]
    assert git is None or (len(git["commit"]) == 40 and isinstance(git["dirty"], bool))
    records.finite(record)


def test_records_are_read_without_torch() -> None:
    check = (
        "import sys; from memcalc.harness import memory_summary, record_head, records; "
        "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0

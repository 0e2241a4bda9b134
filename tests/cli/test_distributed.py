"""memcalc measure and verify under torchrun: a record a rank, one voice, an end when a rank is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memcalc.harness.ranks.rank_records import rank_bytes, runs_of
from memcalc.harness.records import read
from tests.cli.conftest import Outcome

ROOT = Path(__file__).parents[2]
MODEL = {
    "model_type": "llama", "vocab_size": 500, "hidden_size": 64, "intermediate_size": 160,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
QUICK = ("--device", "cpu", "--precision", "fp32", "--seq", "48", "--warmup", "1", "--steps", "3")
#: Options of each layout, and its rows and micro-batches.
MODES = {
    "ddp": (("--micro-batch", "2"), ()),
    "fsdp": (("--micro-batch", "2"), ("--fsdp",)),
    "tp-sp": (("--micro-batch", "4"), ("--tp", "2", "--sp")),
    "pp": (("--micro-batch", "4", "--grad-accum", "2"), ("--pp", "2")),
}
#: `verify` does all that `measure` does, and holds each rank against its estimate.
COMMAND = {"ddp": "measure", "fsdp": "verify", "tp-sp": "verify", "pp": "verify"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def command(port: int, *words: object) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
        str(port), "-m", "memcalc", *map(str, words),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(*words: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(free_port(), *words), capture_output=True, text=True, timeout=timeout_s,
        env=environment(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.json"
    path.write_text(json.dumps(MODEL))
    return path


@pytest.fixture(scope="module", params=MODES)
def launched(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    rows, layout = MODES[request.param]
    done = launch(COMMAND[request.param], model, *QUICK, *rows, *layout, "--records", path)
    return request.param, done, read(path)


def test_every_rank_leaves_a_record_and_losses_are_those_of_one_process(
    launched: tuple[str, subprocess.CompletedProcess[str], list[dict[str, Any]]],
    model: Path,
    memcalc: Callable[..., Outcome],
) -> None:
    name, done, records = launched
    assert done.returncode == 0, done.stderr[-3000:]
    assert [record["rank"] for record in records] == [0, 1] and len(runs_of(records)) == 1
    assert all(record["status"] == "ok" for record in records)
    assert all(record["kind"] == COMMAND[name] for record in records)
    world = records[0]["world"]
    assert world["size"] == 2 and world["backend"] == "gloo" and world["hosts"] == 1
    degrees = {"ddp": (2, 1, 1), "fsdp": (2, 1, 1), "tp-sp": (1, 2, 1), "pp": (1, 1, 2)}[name]
    assert (world["dp"], world["tp"], world["pp"]) == degrees
    assert world["fsdp"] is (name == "fsdp") and world["sp"] is (name == "tp-sp")
    rows, _ = MODES["pp" if name == "pp" else "tp-sp"]
    one = memcalc("measure", model, *QUICK, *rows, "--no-record", "--json").json
    for record in records:
        assert record["loss"]["values"] == pytest.approx(one["loss"]["values"], rel=1e-5)
        assert record["loss_fell"] is True
        assert record["time"]["tokens_per_step"] == one["time"]["tokens_per_step"]
        assert (
            record["setup"]["resolved"]["global_batch"] == one["setup"]["resolved"]["global_batch"]
        )
    slowest = [max(pair) for pair in zip(*(r["time"]["rank_step_s"] for r in records), strict=True)]
    assert records[0]["time"]["step_s"] == records[1]["time"]["step_s"] == slowest
    found, whole = rank_bytes(records), one["memory"]
    assert all(entry.peak and entry.saved for entry in found)
    parameters = sum(entry.parameters or 0 for entry in found)
    if name == "ddp":
        assert parameters == 2 * whole["states"]["parameters"]
    elif name == "tp-sp":  # five norms are on both
        assert parameters == whole["states"]["parameters"] + 5 * 64 * 4
    else:
        assert parameters == whole["states"]["parameters"]
    if name != "ddp":
        assert max(entry.peak or 0 for entry in found) < whole["peak_requested_bytes"]


def test_rank_0_alone_prints_a_table_of_ranks(
    launched: tuple[str, subprocess.CompletedProcess[str], list[dict[str, Any]]],
) -> None:
    name, done, records = launched
    said = {
        "ddp": "dp 2 (ddp)",
        "fsdp": "dp 2 (fsdp2)",
        "tp-sp": "tp 2 with sp",
        "pp": "pp 2 (1f1b)",
    }
    assert done.stdout.count("2 ranks (gloo): " + said[name]) == 1
    place = {"ddp": "0 1 0", "fsdp": "0 1 0", "tp-sp": "0 0 1", "pp": "1 0 0"}[name]
    rows = [line.split() for line in done.stdout.splitlines() if line[:1] in ("0", "1")]
    assert [row[0] for row in rows[:2]] == ["0", "1"] and rows[1][1:4] == place.split()
    assert rows[0][-1] == rows[1][-1] == "ok"
    assert done.stderr.count("2 records appended") == 1
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_every_rank_is_verified_to_the_byte(
    launched: tuple[str, subprocess.CompletedProcess[str], list[dict[str, Any]]],
) -> None:
    """Two real processes: states, saved bytes and every phase's peak as the estimate says.

    gloo's threads may hold a collective's tensors a while longer; then a figure is above, never below.
    """
    name, done, records = launched
    if COMMAND[name] == "measure":
        assert "peak predicted" not in done.stdout
        return
    for record in records:
        rows = record["comparison"]["rows"]
        states = [row for row in rows if row["group"] == "states"]
        tensors = [row for row in rows if row["group"] == "tensors"]
        assert len(states) == 3 and all(row["verdict"] == "equal" for row in states)
        assert len(tensors) >= 5
        for row in tensors:
            late = row["verdict"] == "explained" and row["measured"] > row["predicted"]
            assert row["verdict"] == "equal" or late, row
    peaks = [f"{record['memory']['peak_requested_bytes']:,}" for record in records]
    assert all(f" {peak} " in done.stdout for peak in peaks)
    assert done.stdout.count("verified") == 2


def test_bad_degrees_are_said_once(model: Path) -> None:
    words = ("measure", model, *QUICK, "--tp", "2", "--set", "model.vocab_size=501", "--no-record")
    with subprocess.Popen(
        command(free_port(), *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(),
    ) as running:  # fmt: skip
        assert running.stdout is not None and running.stderr is not None
        heard = [(time.monotonic(), line.rstrip()) for line in running.stderr]
        end, out = time.monotonic(), running.stdout.read()
    [(said_at, said)] = [(at, line) for at, line in heard if line.startswith("error: ")]
    assert said == (
        "error: tp: got 2; rule: divides vocab_size = 501; valid: 1; or --set model.vocab_size=502"
    )
    assert out == "" and any("exitcode  : 2" in line for _, line in heard)
    assert end - said_at < 28  # rank 1 waits no longer than it must


def workers(parent: int) -> Iterator[tuple[int, int]]:
    """(process id, rank) of what torchrun started."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                text = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            rank = [entry[5:] for entry in text if entry.startswith(b"RANK=")]
            if int(fields[1]) == parent and rank:
                yield int(folder.name), int(rank[0])


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_killed_rank_ends_the_run_and_the_others_records_stay(
    model: Path, tmp_path: Path
) -> None:
    from torch.distributed import TCPStore

    port, path = free_port(), tmp_path / "records.jsonl"
    words = ("measure", model, *QUICK[:-1], 1_000_000, "--fsdp", "--records", path)
    running = subprocess.Popen(
        command(port, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        store, stage = None, b""
        while stage != b"timed steps" and time.monotonic() < deadline:
            time.sleep(0.2)
            try:
                store = store or TCPStore(
                    "127.0.0.1", port, is_master=False, wait_for_workers=False
                )
                key = "memcalc/0/0/stage/1"
                stage = store.get(key) if store.check([key]) else b""
            except Exception:  # not there yet
                store = None
        assert stage == b"timed steps"
        os.kill(next(pid for pid, rank in workers(running.pid) if rank == 1), signal.SIGKILL)
        out, err = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode != 0
    first, second = read(path)
    assert first["status"] == second["status"] == "failed"
    assert second["error"]["type"] == "Lost" and second["error"]["stage"] == "timed steps"
    assert first["time"]["first_step_s"] > 0 and second["time"] == {}
    assert "error: rank 1: Lost: ended without a record" in err and "Lost" in out


def test_degrees_without_torchrun_say_how_to_start(
    model: Path, memcalc: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    two = memcalc("measure", model, *QUICK, "--tp", "2", "--pp", "2")
    assert two.status == 2 and "torchrun --nproc-per-node 4" in two.error
    assert "torchrun" in memcalc("measure", model, *QUICK, "--fsdp").error
    assert "valid: --pp above 1" not in memcalc("measure", model, *QUICK, "--sp").error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tp", "3"), "tp: got 3; rule: dp x tp x pp = 4, the processes of torchrun"),
        (("--pp", "2", "--dp", "2"), "grad-accum: got 1; rule: for 1f1b at least the 2 stages"),
        (("--fsdp", "--global-batch", "6"), "--global-batch: got 6; rule: a multiple of the 4"),
        (("--device", "cpu:0"), "--device: got 'cpu:0' for 4 processes"),
        (("--schedule", "gpipe"), "schedule: got no stages"),
    ],
)
def test_bad_input_under_torchrun_is_refused_before_ranks_meet(
    model: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str,
    memcalc: Callable[..., Outcome], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from memcalc.harness.ranks import rank_end

    def leave(status: int) -> None:
        assert status == 2
        raise SystemExit(status)

    monkeypatch.setattr(rank_end, "leave_process", leave)
    for name, value in {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        memcalc("measure", model, *QUICK, "--no-record", *words)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"error: {said}")
    assert len(captured.err.splitlines()) == 1

"""The MFU benchmark: both runners do the same work, take turns, and their figures are arithmetic."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from benchmarks import harness_mfu  # noqa: E402
from benchmarks.harness_mfu import alternate, case_of, ratios, run_case, run_residual  # noqa: E402
from benchmarks.sweep import rivals  # noqa: E402
from benchmarks.sweep.setups import model_of  # noqa: E402
from memcalc.engine.flops import step_flops  # noqa: E402
from memcalc.engine.memory import step_memory  # noqa: E402
from memcalc.harness import records  # noqa: E402

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny():
    pytest.importorskip("transformers")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run_case("1.3b", CPU, tiny=True, modes=("eager",))
    torch.set_num_threads(before)


def test_both_runners_train_and_every_step_is_kept(tiny):
    assert tiny["status"] == "ok" and tiny["kind"] == "mfu"
    rows = {row["name"]: row for row in tiny["runners"]}
    assert set(rows) == {"memcalc eager", "transformers eager"}
    for row in rows.values():
        assert row["status"] == "ok" and row["loss_fell"]
        assert [len(turn) for turn in row["turns_s"]] == [2, 2]
        assert row["p10_s"] <= row["median_s"] <= row["p90_s"]
        assert row["tokens_per_s"] == pytest.approx(tiny["tokens_per_step"] / row["median_s"])
    assert tiny["ratios"]["eager"] == pytest.approx(
        rows["memcalc eager"]["tokens_per_s"] / rows["transformers eager"]["tokens_per_s"]
    )


def test_losses_start_where_a_fresh_models_must(tiny):
    """Random tokens, small random weights: the first loss is near log(vocabulary) for both."""
    for row in tiny["runners"]:
        assert row["losses"][0] == pytest.approx(math.log(256), rel=0.02)


@pytest.mark.parametrize(("name", "count"), [("llama-1.3b", 1_345_423_360), ("llama-3.1-8b", None)])
def test_transformers_llama_has_our_decoders_parameters(name, count):
    pytest.importorskip("transformers")
    config = model_of(name)
    if count is None:
        config = dataclasses.replace(config, num_hidden_layers=8)
    theirs = rivals.llama(config, torch.device("meta"))
    assert {p.dtype for p in theirs.parameters()} == {torch.bfloat16}
    total = sum(p.numel() for p in theirs.parameters())
    case = rivals.Case(config, 2048, 1, 1)
    assert total == step_memory(case.plan(CPU)).states.parameters
    assert count is None or total == count


def test_model_flops_are_six_a_parameter_and_attention_by_both_conventions():
    # full square: 6 N_mm + 12 L a d s (PaLM, appendix B); causal: half the second term.
    case = case_of("8b-slice", SimpleNamespace(type="cpu"), tiny=True)
    config = dataclasses.replace(model_of("llama-3.1-8b"), num_hidden_layers=8)
    flops = step_flops(case._replace(config=config, seq_len=8192, micro_batch_size=1).plan(CPU))
    block = 4096 * (4096 * 2 + 1024 * 2) + 3 * 4096 * 14336
    products = 8 * block + 128256 * 4096
    attention = 12 * 8 * 32 * 128 * 8192
    assert flops.model_per_token == pytest.approx(6 * products + attention, rel=1e-12)
    assert flops.model_causal_per_token == pytest.approx(6 * products + attention / 2, rel=1e-12)


class Counted:
    def __init__(self, name, order):
        self.name, self.order = name, order

    def run(self):
        self.order.append(self.name)
        return torch.tensor(float(len(self.order)))


def test_runners_take_turns_block_by_block():
    order = []
    a, b = Counted("a", order), Counted("b", order)
    found = alternate([a, b], CPU, (2, 3, 1))
    assert "".join(order) == "ab" + "aaabbb" * 2 + "ab"  # warm-up, turns, a last step for the loss
    assert [len(turn) for turn in found["turns"]["a"]] == [3, 3]
    assert found["losses"]["a"][0] == 1.0


@pytest.mark.parametrize(("total", "batch"), [(84_929_347_584, (4, 4)), (150_754_820_096, (8, 2))])
def test_a_smaller_card_gets_smaller_micro_batches_and_the_same_tokens(monkeypatch, total, batch):
    facts = SimpleNamespace(total_memory=total)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    case = case_of("1.3b", torch.device("cuda", 0), tiny=False)
    assert (case.micro_batch_size, case.grad_accum_steps) == batch
    assert case.tokens == 32768 and case.seq_len == 2048
    slice_ = case_of("8b-slice", torch.device("cuda", 0), tiny=False)
    assert slice_.config.num_hidden_layers == 8 and slice_.seq_len == 8192
    assert slice_.config.hidden_size == 4096 and slice_.tokens == 32768


def test_without_transformers_ours_still_runs(monkeypatch):
    def missing(case, device, compiled):
        raise ImportError("No module named 'transformers'")

    monkeypatch.setitem(rivals.MAKERS, "theirs", missing)
    found = run_case("1.3b", CPU, tiny=True, modes=("eager",))
    by_status = {row["name"]: row["status"] for row in found["runners"]}
    assert by_status == {"theirs": "skipped", "memcalc eager": "ok"}
    assert found["status"] == "ok" and found["ratios"] == {}
    harness_mfu.table([found])


def test_a_mode_that_runs_out_of_memory_leaves_the_other(monkeypatch):
    def pair(case, device, compiled, tiny):
        if compiled:
            raise torch.cuda.OutOfMemoryError("Tried to allocate 4.00 GiB")
        return [{"name": "memcalc eager", "status": "ok", "median_s": 0.5}]

    monkeypatch.setattr(harness_mfu, "pair", pair)
    found = run_case("1.3b", CPU, tiny=True)
    assert [row["status"] for row in found["runners"]] == ["ok", "oom"]
    assert found["runners"][0]["tokens_per_s"] == found["tokens_per_step"] / 0.5
    assert found["status"] == "ok"


def test_the_trial_keeps_the_fastest_of_each_setting_and_what_cannot_run(monkeypatch):
    def quick(case, device):
        if case.attention == "cudnn":
            raise RuntimeError("no such kernel")
        return 2.0 - 0.5 * (case.loss == "chunked") + 0.1 * (case.fused_qkv or case.fused_gate_up)

    monkeypatch.setattr(harness_mfu, "_quick", quick)
    monkeypatch.setattr(harness_mfu, "release", lambda device: None)
    start = rivals.Case(model_of("tiny-llama"), 32, 2, 2)
    case, taken = harness_mfu.trial(start, torch.device("cuda", 0))
    kept = {"attention": "flash", "loss": "chunked", "fused_qkv": False, "fused_gate_up": False}
    assert case.settings == kept
    assert [row.get("step_s") for row in taken] == [2.0, None, 1.5, 1.6, 1.6]
    assert taken[1]["error"] == "no such kernel"


def test_one_product_for_q_k_and_v_trains_as_well(tiny):
    case = case_of("1.3b", CPU, tiny=True)._replace(fused_qkv=True)
    runner = rivals.Ours(case, CPU, compiled=False)
    first, *_, last = [float(runner.run()) for _ in range(4)]
    names = [name for name, _ in runner.step.model.named_parameters()]
    assert last < first and not any("q_proj" in name for name in names)


def test_settings_of_an_earlier_record_are_used_again(monkeypatch):
    monkeypatch.setattr(harness_mfu, "pair", lambda *a: [])
    monkeypatch.setattr(harness_mfu, "trial", lambda *a: pytest.fail("a trial was made"))
    found = run_case("1.3b", CPU, True, ("eager",), {"attention": "flash", "loss": "chunked"})
    assert found["setup"]["kernels"]["loss"] == "chunked" and found["status"] == "failed"


def test_ratios_need_both_runners_of_a_mode():
    rows = [
        {"name": "memcalc eager", "tokens_per_s": 30.0},
        {"name": "transformers eager", "tokens_per_s": 20.0},
        {"name": "memcalc compiled", "tokens_per_s": 50.0},
    ]
    assert ratios(rows) == {"eager": 1.5}


def test_the_residual_is_two_blocks_apart(monkeypatch):
    def steps(runner, device, count):
        return [0.1 + 0.02 * runner.step.plan.config.num_hidden_layers] * count

    monkeypatch.setattr(harness_mfu, "steps_of", steps)
    found = run_residual({"modes": ["eager"], "tiny": True}, CPU)["record"]
    mode = found["modes"]["eager"]
    assert mode["block_s"] == pytest.approx(0.02) and mode["rest_s"] == pytest.approx(0.1)
    assert found["late"] == 0
    cut = run_residual({"modes": ["eager"], "wanted": ["eager", "compiled"], "tiny": True}, CPU)
    assert cut["record"]["late"] == 1  # a later call does it again, whole


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.harness_mfu", *words], cwd=ROOT, capture_output=True,
        text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
    )  # fmt: skip


def test_it_runs_alone_and_keeps_its_record(tmp_path):
    out = tmp_path / "mfu.jsonl"
    done = run("--device", "cpu", "--tiny", "--case", "8b-slice", "--out", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "8b-slice" in done.stdout and "memcalc eager" in done.stdout and "1.3b" not in done.stdout
    )
    [record] = records.read(out)
    assert record["case"] == "8b-slice" and record["setup"]["model"]["num_hidden_layers"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--case", "2b"), "--case: got '2b'"), (("--device", "gpu9"), "--device: got 'gpu9'")],
)
def test_wrong_words_are_one_line_and_status_2(words, said):
    done = run(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1

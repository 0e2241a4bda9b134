"""The peak of a micro-batch as PyTorch runs it, no dispatch mode looking on, on real CPU tensors.

Judge: the profiler's record of every allocation. Gradients of tensors read several times are then summed
in place where nothing else holds the first one. Host memory is this device's memory, so two things
come on top that no GPU has: a wrapped scalar of 8 bytes a layer (the scores' factor), and, with
checkpoints, the CPU's random state of 5056 bytes a layer. A sum may take 32 bytes of its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from memcalc.engine.build import Build
from memcalc.engine.dims import dim_sizes, dim_values
from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.engine.tensors import Tape
from memcalc.engine.trace import micro_batch
from memcalc.harness.model.decoder import assemble, initialize
from memcalc.inputs.model import ModelConfig
from tests.harness.models import GPT2, LLAMA, MIXTRAL

SCALAR, RANDOM_STATE, OF_A_SUM = 8, 5056, 32
#: Kernels that take no scratch on a CPU.
KERNELS = Kernels(
    param_dtype="fp32", compute_dtype="fp32", norm="hand", attention="eager", device="cpu"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over several threads take a buffer for each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _kinds(model: ModelConfig, recompute: str) -> tuple[BlockKind, ...]:
    layers = range(model.num_hidden_layers)
    return tuple(BlockKind(sparse=model.is_sparse(i), recompute=recompute) for i in layers)


def engine_peak(model: ModelConfig, recompute: str, watched: bool = False) -> int:
    values = dim_values(model, 2, 64)
    tape = Tape(device="cpu", watched=watched)
    micro_batch(Build(tape, model, KERNELS, dim_sizes(values)), [*_kinds(model, recompute)], False)
    live = peak = 0
    for event in tape.events:
        size = tape.sizes[event if event >= 0 else ~event].value(values)
        live += size if event >= 0 else -size
        peak = max(peak, live)
    return peak


def real_peak(model: ModelConfig, recompute: str, folder: Path) -> int:
    decoder = assemble(model, KERNELS, _kinds(model, recompute), "cpu")
    initialize(decoder, 0)
    ids = torch.randint(model.vocab_size, (2, 64))
    decoder(ids, ids).backward()  # what is made once is made
    decoder.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        decoder(ids, ids).backward()
    recorded.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    memory = [(e["ts"], int(e["args"]["Bytes"])) for e in events if e.get("name") == "[memory]"]
    live = peak = 0
    for _, change in sorted(memory):
        live += change
        peak = max(peak, live)
    return peak


def _drawn() -> list[tuple[ModelConfig, str]]:
    rng = random.Random("unwatched")
    found = []
    for number in range(16):
        base = (LLAMA, GPT2, MIXTRAL, LLAMA)[number % 4]
        changes = {
            "vocab_size": rng.choice([10, 500]),
            "hidden_size": rng.choice([64, 256]),
            "intermediate_size": rng.choice([8, 160]),
            "num_hidden_layers": rng.choice([1, 2]),
            "parallel_block": number % 4 == 3,
        }
        if base is MIXTRAL:
            changes["num_hidden_layers"] = 2
        found.append((replace(base, **changes), rng.choice(["none", "full"])))
    return found


@pytest.mark.parametrize("number", range(16))
def test_the_peak_is_the_one_pytorch_reaches(number: int, tmp_path: Path) -> None:
    model, recompute = _drawn()[number]
    more = real_peak(model, recompute, tmp_path) - engine_peak(model, recompute)
    a_layer = SCALAR + (RANDOM_STATE if recompute == "full" else 0)
    layers = range(model.num_hidden_layers + 1)
    assert more in {n * a_layer + sums for n in layers for sums in (0, OF_A_SUM)}


def test_a_dispatch_mode_changes_the_peak() -> None:
    """Wide hidden states beside one narrow head: the sum of four gradients is the worst moment."""
    narrow = replace(
        LLAMA, vocab_size=10, hidden_size=512, intermediate_size=8, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, parallel_block=True,
    )  # fmt: skip
    assert engine_peak(narrow, "full", watched=True) > engine_peak(narrow, "full")

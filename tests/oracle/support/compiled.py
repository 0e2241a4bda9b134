"""Steps of a decoder with compiled blocks under the tracker, and what the engine says of them.

`meta_facts` runs the compiler's CUDA programs on tensors without data (inductor.py), `cpu_facts` the
real torch.compile on a CPU. As a program, `python -m tests.oracle.support.compiled COUNT` draws COUNT
steps in which the blocks' own memory decides, and prints how far the engine is from the compiler.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from memcalc.engine.make_plan import make_plan
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.harness.watch.tracker import StorageTracker
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import resolve
from tests.oracle.support.reference import (
    DEFAULT,
    How,
    RefConfig,
    _FusedRMSNorm,
    model_of,
    setup_of,
)
from tests.oracle.support.step import _Step, _without_data

STACK = load_stack("torch-compile")


class Facts(NamedTuple):
    """Bytes of one step as PyTorch takes them."""

    saved: int
    peak: int
    phases: dict[str, int]


class _Tracker(StorageTracker):
    """A tracker torch.compile does not stand back for: it only looks on."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


def compiled_plan(cfg: RefConfig, how: How = DEFAULT, **kernels: Any) -> Plan:
    """The engine's plan for a reference model whose blocks are compiled."""
    kernels = {"watched": True, **kernels}
    if cfg.norm != "layer" and not cfg.is_gpt2:
        kernels["norm"] = cfg.norm
    return make_plan(resolve(setup_of(cfg, how), model_of(cfg)), STACK, kernels)


def differences(plan: Plan, facts: Facts) -> dict[str, tuple[int, int]]:
    """What the engine and PyTorch say differently: {name: (engine, PyTorch)}."""
    ours = step_memory(plan)
    pairs = {"saved": (ours.saved_bytes, facts.saved), "peak": (ours.peak_bytes, facts.peak)}
    pairs |= {name: (ours.phases[name], facts.phases[name]) for name in facts.phases}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def meta_facts(plan: Plan) -> Facts:
    """The second step by the compiler's CUDA programs."""
    from tests.oracle.support.inductor import backend

    torch._dynamo.reset()
    with mock.patch("memcalc.harness.model.norms.fused_rms_norm", _rms_norm), _without_data("meta"):
        step = _Step(plan, "meta")
        for block in step.model.layers:
            block.compile(backend=backend(), fullgraph=True)
        return _facts(step, "meta")


def cpu_facts(plan: Plan) -> Facts:
    """The second step by the real torch.compile on a CPU; its buffers are made visible."""
    torch._dynamo.reset()
    no_caches = torch._inductor.config.patch(fx_graph_cache=False, compile_threads=1)
    no_joint_cache = torch._functorch.config.patch(enable_autograd_cache=False)
    seen = mock.patch("torch._C._dynamo.guards._empty_strided_cpu", _empty_strided)
    with no_caches, no_joint_cache, seen:
        step = _Step(plan, "cpu")
        for block in step.model.layers:
            block.compile(fullgraph=True)
        return _facts(step, "cpu")


def _facts(step: _Step, device: str) -> Facts:
    # The compiler works in the first step, where nobody looks on.
    step.record(StorageTracker(device), False)
    tracker = _Tracker(device)
    gradients = [parameter.grad for parameter in step.model.parameters()]
    tracker.track(step.model, gradients, step.ids, step.labels, *step.optimizers)
    with tracker:
        step.record(tracker, False)
    scalars = sum(
        state.nbytes
        for optimizer in step.optimizers
        for states in optimizer.state.values()
        for name, state in states.items()
        if name == "step" and state.device.type == device
    )  # Adam's step counts: on a CPU they lie beside the states, of CUDA's foreach on the host
    peaks = {name: peak.nbytes - scalars for name, peak in tracker.phase_peaks.items()}
    peaks.pop("zero_grad", None)
    return Facts(step.saved, max(peaks.values()), peaks)


def _empty_strided(size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
    """What compiled code calls to allocate, by way of the dispatcher."""
    return torch.empty_strided(size, stride, dtype=dtype)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """CUDA's fused kernel outside the blocks; inside them the compiler takes the norm apart."""
    if torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight, eps)
    return _FusedRMSNorm.apply(x, weight, eps)  # type: ignore[no-any-return]


def drawn(rng: random.Random) -> RefConfig:
    """A small vocabulary and about as many tokens as the model is wide, so that blocks decide."""
    gpt2 = rng.random() < 0.4
    width, heads = rng.choice([32, 64]), rng.choice([4, 8, 16])
    hidden = heads * width
    return RefConfig(
        family="gpt2" if gpt2 else "llama",
        b=rng.choice([1, 2, 4]),
        s=rng.choice([128, 256, 512, 1024, 2048]),
        V=rng.choice([64, 128, 512]),
        h=hidden,
        L=rng.choice([1, 2, 4]),
        a=heads,
        k=heads if gpt2 else rng.choice([k for k in (1, 2, 4, 8, 16) if heads % k == 0]),
        d=width,
        f=4 * hidden if gpt2 else rng.choice([11, 14, 16]) * hidden // 4,
        precision=rng.choice(["bf16", "mixed", "mixed", "fp32"]),
        norm="layer" if gpt2 else "fused",
        attention=rng.choice(["flash", "flash", "efficient", "cudnn", "eager"]),
        loss=rng.choice(["plain", "fp32", "chunked"]),
        recompute=rng.choice(["none", "full"]),
        qkv_bias=not gpt2 and rng.random() < 0.3,
        attention_bias=not gpt2 and rng.random() < 0.1,
        mlp_bias=not gpt2 and rng.random() < 0.1,
        qk_norm=not gpt2 and rng.random() < 0.2,
        dropout=rng.choice([0.0, 0.0, 0.1]),
    )


def deviations(count: int, seed: str) -> Iterator[dict[str, float]]:
    """Engine over compiler, less 1, for saved bytes, each phase's peak and the step's."""
    rng = random.Random(seed)
    for _ in range(count):
        how = How(accum=rng.choice([1, 2]), set_to_none=rng.random() < 0.7)
        plan = compiled_plan(drawn(rng), how)
        facts = meta_facts(plan)
        wrong = differences(plan, facts)
        names = ("saved", *facts.phases, "peak")
        yield {n: wrong[n][0] / wrong[n][1] - 1 if n in wrong else 0.0 for n in names}


def main(count: int, seed: str = "compiled") -> None:
    """Print exact counts, median and worst deviation of `count` drawn steps."""
    rows = list(deviations(count, seed))
    for name in rows[0]:
        off = [row[name] for row in rows]
        exact = sum(value == 0 for value in off)
        middle, worst = statistics.median(map(abs, off)), max(off, key=abs)
        mean = statistics.mean(map(abs, off))
        print(
            f"{name:10} n {len(off)}  exact {exact}  median {middle:.4%}  "
            f"mean {mean:.4%}  worst {worst:+.3%}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]))

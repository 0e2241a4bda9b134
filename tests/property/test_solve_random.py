"""solve agrees with `estimate` and `infer` at its answer and just past it, on random setups.

300 in all, a third by default (tests/draws.py). The two commands that a solution prints are run as
`estimate` and `infer` run them: the first must fit, the second must not, and between the two there is no
other candidate.
"""

from __future__ import annotations

import random
import shlex

import pytest

from memcalc.cli.app import parse_arguments
from memcalc.cli.infer import serving_stated
from memcalc.cli.pace import priced
from memcalc.cli.request import device_stated, layout_stated, request_of
from memcalc.cli.solve import solution
from memcalc.engine.serving.infer import infer
from memcalc.errors import ConfigError
from memcalc.inputs.models import load_model
from tests.draws import drawn

_MODELS = ("gpt2", "llama-3.2-1b", "opt-125m", "qwen2.5-0.5b", "pythia-160m", "gemma-3-1b")
_MOST = 300


def _training(draw: random.Random, what: str) -> list[str]:
    words = [draw.choice(_MODELS), "--gpu", draw.choice(("h100", "4090", "v100-32gb"))]
    words += ["--precision", draw.choice(("bf16-mixed", "bf16", "fp32"))]
    words += ["--optimizer-impl", draw.choice(("foreach", "fused"))]
    words += ["--recompute", draw.choice(("none", "none", "full", "sac"))]
    words += ["--attention", draw.choice(("flash", "eager"))]
    if what != "seq":
        words += ["--seq", str(draw.choice((64, 127, 256, 512)))]
    if what != "micro-batch":
        words += ["--micro-batch", str(draw.choice((1, 2, 3)))]
    if what == "gpus":
        return [*words, "--fsdp", "--gpu-memory", f"{draw.uniform(1.2, 4):.3f}GiB", "--layers", "2"]
    if what != "layers":
        words += ["--layers", str(draw.choice((1, 2, 3)))]
        words += draw.choice(([], [], ["--gpus", "4", "--fsdp"], ["--loss", "chunked"]))
    return [*words, "--gpu-memory", f"{draw.uniform(3, 10):.3f}GiB"]


def _serving(draw: random.Random, what: str) -> list[str]:
    words = [draw.choice(("gpt2", "llama-3.2-1b", "pythia-160m", "qwen2.5-0.5b")), "--gpu", "4090"]
    words += ["--context", "600"] if what == "batch" else ["--batch", str(draw.choice((1, 3)))]
    has_vllm = words[0] in ("llama-3.2-1b", "qwen2.5-0.5b")
    engine = draw.choice(("transformers", "vllm")) if has_vllm else "transformers"
    return [*words, "--engine", engine, "--gpu-memory", f"{draw.uniform(4, 12):.3f}GiB"]


def _fits(command: str) -> bool | None:
    name, *words = shlex.split(command)[1:]
    arguments = parse_arguments(name, words)
    if name == "estimate":
        request = request_of(arguments)
        return priced(request, request.device(arguments)).fits
    config = load_model(arguments.positionals[0])
    layout, device = layout_stated(arguments), device_stated(arguments)
    return infer(config, serving_stated(arguments), parallel=layout, gpu=device).fits


@pytest.mark.parametrize("number", drawn(_MOST))
def test_the_answer_fits_and_the_next_value_does_not(number: int) -> None:
    draw = random.Random(number)
    what = draw.choice(("micro-batch", "micro-batch", "seq", "layers", "gpus", "batch", "context"))
    words = (_serving if what in ("batch", "context") else _training)(draw, what)
    try:
        found = solution(parse_arguments("solve", [what, *words]))
    except ConfigError as error:
        pytest.skip(str(error))
    if found.value is not None:
        assert _fits(found.value.command) is True, found.value.command
    if found.failing is not None:
        assert _fits(found.failing.command) is False, found.failing.command
        assert found.limited_by is not None and found.limited_by["part"]
    assert found.value is not None or found.failing is not None
    if found.value is not None and found.failing is not None and what not in ("gpus", "context"):
        assert found.failing.value - found.value.value == 1

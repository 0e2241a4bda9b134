"""Reading how fast a run goes and what it runs over, as `train-time` and `mfu` take it stated."""

from __future__ import annotations

from typing import NamedTuple

from memcalc.cli.options import BY_NAME
from memcalc.cli.parse import Arguments
from memcalc.cli.request import Request, typed
from memcalc.engine.device_side import Device
from memcalc.engine.estimate import estimate
from memcalc.engine.results import Estimate
from memcalc.errors import ConfigError
from memcalc.planning.train_time import (
    Corpus,
    compute_optimal_tokens,
    corpus_of_samples,
    corpus_of_tokens,
)
from memcalc.units import parse_decimal_count

#: Ways to state a throughput; one of them at most.
RATES = ("tokens-per-s", "tokens-per-s-per-gpu", "samples-per-s", "step-time")


class Shape(NamedTuple):
    """What a throughput is converted with; None where no model or option says so."""

    gpus: int
    seq_len: int | None
    tokens_per_step: int | None


def priced(request: Request, device: Device) -> Estimate:
    """The estimate of a request, without the advice that `estimate` looks for when it does not fit."""
    return estimate(
        request.config,
        request.setup,
        parallel=request.parallel,
        gpu=device,
        kernels=request.kernels,
    )


def positive(arguments: Arguments, name: str) -> float | None:
    """A number above 0, None where the option was not given. Raises ConfigError."""
    text = arguments.text(name)
    if text is None:
        return None
    value = float(typed(BY_NAME[name], text))
    if value <= 0:
        raise ConfigError(f"--{name}: got {text}; rule: above 0")
    return value


def only_one(arguments: Arguments, names: tuple[str, ...]) -> str | None:
    """Which of these options was given. Raises ConfigError where two were."""
    given = [name for name in names if name in arguments.options]
    if len(given) > 1:
        raise ConfigError(f"--{given[1]}: got --{given[0]} too; rule: one of them")
    return given[0] if given else None


def tokens_per_s(arguments: Arguments, name: str, shape: Shape) -> float:
    """Tokens/s of all GPUs from the one option that states a throughput. Raises ConfigError."""
    value = positive(arguments, name)
    assert value is not None
    if name == "tokens-per-s":
        return value
    if name == "tokens-per-s-per-gpu":
        return value * shape.gpus
    if name == "samples-per-s":
        if shape.seq_len is None:
            raise ConfigError("--samples-per-s: got no --seq; rule: tokens of a sample beside it")
        return value * shape.seq_len
    if shape.tokens_per_step is None:
        raise ConfigError("--step-time: got no MODEL; rule: with a MODEL and its batch")
    return shape.tokens_per_step / value


def corpus(arguments: Arguments, seq_len: int | None, parameters: int | None) -> Corpus | None:
    """What is trained on, from --tokens or --samples; None where neither was given."""
    name = only_one(arguments, ("tokens", "samples"))
    _only_beside_samples(arguments, name)
    if name is None:
        return None
    if name == "tokens":
        return corpus_of_tokens(_tokens(arguments, parameters))
    if seq_len is None:
        raise ConfigError("--samples: got no --seq; rule: tokens of a sample beside it")
    return corpus_of_samples(
        typed(BY_NAME["samples"], arguments.text("samples")),
        positive(arguments, "epochs") or 1.0,
        seq_len,
        positive(arguments, "sample-tokens"),
        arguments.has("packed"),
    )


def _only_beside_samples(arguments: Arguments, name: str | None) -> None:
    for lonely in ("epochs", "sample-tokens", "packed"):
        if lonely in arguments.options and name != "samples":
            raise ConfigError(f"--{lonely}: got no --samples; rule: beside --samples")


def _tokens(arguments: Arguments, parameters: int | None) -> int:
    text = str(arguments.text("tokens")).strip()
    if text == "optimal":
        if parameters is None:
            raise ConfigError("--tokens: got optimal and no MODEL; rule: a number of tokens")
        return compute_optimal_tokens(parameters)
    count = parse_decimal_count(text, "--tokens")
    if count < 1:
        raise ConfigError(f"--tokens: got {text}; rule: at least 1")
    return count

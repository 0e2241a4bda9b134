"""From a step's time to a whole run: steps, days, GPU-hours, energy and cost, each with its range.

    steps = ceil(tokens / tokens a step)       wall clock = steps x step time / availability
    GPU-hours = GPUs x wall clock              energy = GPU-hours x TDP x power fraction x PUE

Not counted: evaluation, start-up, data preparation, failed attempts; hosts and switches draw power only
through the PUE stated. Energy and cost are of the wall clock: GPUs that wait for a restart are paid for.
Checked by: unit/test_train_time.py, cli/test_train_time.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.hardware import Gpu
from memcalc.planning.failures import ALWAYS, Availability

if TYPE_CHECKING:
    from memcalc.engine.results import Estimate

#: Tokens a parameter that lower the loss most for a budget of FLOPs, dense models.
#: Source: Hoffmann et al. 2022 (arXiv:2203.15556, tables 3 and A3).
TOKENS_PER_PARAMETER = 20
#: As carbon accounts of published runs count: the GPU's TDP as drawn all the time, and a PUE of 1.1.
#: Source: Touvron et al. 2023 (arXiv:2302.13971, sec. 6).
POWER_FRACTION = 1.0
PUE = 1.1
_HOUR, _DAY = 3600.0, 86400.0


class Spread(NamedTuple):
    """A quantity with the least and the most it may be; all three are equal where no band is known."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Spread:
        """Each of the three times a positive factor."""
        return Spread(self.low * factor, self.expected * factor, self.high * factor)

    def under(self, numerator: float) -> Spread:
        """A numerator over each of the three; the least becomes the most."""
        return Spread(numerator / self.high, numerator / self.expected, numerator / self.low)


class Corpus(NamedTuple):
    """What is trained on. tokens: rows the GPUs compute, padding included; real_tokens: without it."""

    tokens: int
    real_tokens: float
    samples: int | None = None
    epochs: float | None = None
    sample_tokens: float | None = None
    packed: bool = False


class Pace(NamedTuple):
    """How fast: tokens/s of all GPUs, and where that is from (time model | stated ...)."""

    basis: str
    tokens_per_s: Spread


class Price(NamedTuple):
    """USD an hour of one GPU, and how the figure is known."""

    low: float
    high: float
    source: str


class Terms(NamedTuple):
    """What turns time into energy, cost and wall-clock time."""

    price: Price | None = None
    power_fraction: float = POWER_FRACTION
    pue: float = PUE
    availability: Availability = ALWAYS


@dataclass(frozen=True, kw_only=True)
class TrainTime:
    """A whole run. Spreads run from the least to the most; None where a figure is unknown.

    tokens_per_step: of all GPUs. model_flops: of all steps, the full square of attention.
    energy_kwh: with power fraction and PUE. cost_usd: of a range of prices, the middle is taken as
    expected. parameters: those that act on a token.
    """

    corpus: Corpus
    pace: Pace
    terms: Terms
    gpus: int
    tokens_per_step: int
    steps: int
    model_flops: float
    step_s: Spread
    training_s: Spread
    wall_s: Spread
    gpu_hours: Spread
    energy_kwh: Spread | None
    tdp_w: float | None
    cost_usd: Spread | None
    parameters: int

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that are padding."""
        return 1 - self.corpus.real_tokens / self.corpus.tokens

    @property
    def failures(self) -> float | None:
        """Failures expected over the run; None where no rate of failure was stated."""
        mtbf = self.terms.availability.mtbf_s
        return None if mtbf is None else self.wall_s.expected / mtbf

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and numbers: run, pace, time, availability, energy, cost, compute_optimal."""
        optimal = compute_optimal_tokens(self.parameters)
        price, wall = self.terms.price, self.wall_s
        return {
            "run": {
                **self.corpus._asdict(),
                "padding_share": self.padding_share,
                "tokens_per_step": self.tokens_per_step,
                "steps": self.steps,
                "model_flops": self.model_flops,
            },
            "pace": {
                "basis": self.pace.basis,
                "tokens_per_s": self.pace.tokens_per_s._asdict(),
                "tokens_per_s_per_gpu": self.pace.tokens_per_s.times(1 / self.gpus)._asdict(),
                "step_s": self.step_s._asdict(),
            },
            "time": {
                "training_s": self.training_s._asdict(),
                "wall_s": wall._asdict(),
                "hours": wall.times(1 / _HOUR)._asdict(),
                "days": wall.times(1 / _DAY)._asdict(),
                "gpus": self.gpus,
                "gpu_hours": self.gpu_hours._asdict(),
            },
            "availability": {**self.terms.availability._asdict(), "failures": self.failures},
            "energy": {
                "kwh": None if self.energy_kwh is None else self.energy_kwh._asdict(),
                "tdp_w": self.tdp_w,
                "power_fraction": self.terms.power_fraction,
                "pue": self.terms.pue,
            },
            "cost": {
                "usd": None if self.cost_usd is None else self.cost_usd._asdict(),
                "price_usd_per_gpu_hour": None if price is None else price._asdict(),
            },
            "compute_optimal": {
                "tokens_per_parameter": TOKENS_PER_PARAMETER,
                "parameters": self.parameters,
                "tokens": optimal,
                "ratio": self.corpus.real_tokens / optimal,
                "parameters_for_tokens": self.corpus.real_tokens / TOKENS_PER_PARAMETER,
            },
        }


def compute_optimal_tokens(parameters: int) -> int:
    """Tokens that suit a dense model's parameters best for the FLOPs spent: 20 a parameter.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556): 70 B parameters, 1.4 T tokens.
    """
    return TOKENS_PER_PARAMETER * parameters


def corpus_of_tokens(tokens: int) -> Corpus:
    """A stream of tokens in full sequences."""
    return Corpus(tokens, tokens)


def corpus_of_samples(
    samples: int, epochs: float, seq_len: int, sample_tokens: float | None, packed: bool
) -> Corpus:
    """A data set seen epochs times, each sample padded to seq_len unless packed.

    sample_tokens: mean length without padding; seq_len unless stated. Raises ConfigError where it is
    longer than a sequence. Samples padded to the longest of their batch lie between the two.
    """
    mean = float(seq_len) if sample_tokens is None else sample_tokens
    if mean > seq_len:
        raise ConfigError(
            f"sample-tokens: got {mean:g}; rule: at most --seq, longer samples are cut; "
            f"nearest valid: {seq_len}"
        )
    rows = samples * epochs
    real = rows * mean
    computed = real if packed else rows * seq_len
    return Corpus(ceil(computed), real, samples, epochs, mean, packed)


def pace_of(result: Estimate) -> Pace | None:
    """The pace of an estimate's own time, with its band; None where it has no time."""
    time = result.time
    if time.step_s is None:
        return None
    step = Spread(time.low_s or time.step_s, time.step_s, time.high_s or time.step_s)
    return Pace("time model", step.under(tokens_per_step(result)))


def stated_pace(basis: str, tokens_per_s: float) -> Pace:
    """A pace without a band."""
    return Pace(basis, Spread(tokens_per_s, tokens_per_s, tokens_per_s))


def tokens_per_step(result: Estimate) -> int:
    """Tokens of an optimizer step, all GPUs."""
    return int(result.setup["global_batch"]) * int(result.setup["seq_len"])


def gpus_of(result: Estimate) -> int:
    """GPUs of an estimate's layout."""
    return int(result.setup["gpus"] or 1)


def price_of(gpu: Gpu | None, stated: float | None) -> Price | None:
    """The price stated, else the profile's dated range; None without either."""
    if stated is not None:
        return Price(stated, stated, "stated")
    if gpu is None or gpu.price_usd_per_hour_low is None:
        return None
    low, high = gpu.price_usd_per_hour_low, gpu.price_usd_per_hour_high
    doubt = ", unverified" if "price_usd_per_hour_low" in gpu.unverified else ""
    return Price(low, low if high is None else high, f"rental, {gpu.price_as_of}{doubt}")


def train_time(
    result: Estimate, corpus: Corpus, pace: Pace, terms: Terms, gpu: Gpu | None = None
) -> TrainTime:
    """The whole run: whole steps at this pace, then energy and cost of the wall clock."""
    each, gpus = tokens_per_step(result), gpus_of(result)
    steps = ceil(corpus.tokens / each)
    step = pace.tokens_per_s.under(each)
    training = step.times(steps)
    wall = training.times(1 / terms.availability.factor)
    hours = wall.times(gpus / _HOUR)
    watts = None if gpu is None else gpu.tdp_w
    energy = None
    if watts is not None:
        energy = hours.times(watts / 1000 * terms.power_fraction * terms.pue)
    price = terms.price
    cost = None
    if price is not None:
        middle = (price.low + price.high) / 2
        cost = Spread(hours.low * price.low, hours.expected * middle, hours.high * price.high)
    return TrainTime(
        corpus=corpus, pace=pace, terms=terms, gpus=gpus, tokens_per_step=each, steps=steps,
        model_flops=result.time.model_flops_per_token * each * steps,
        step_s=step, training_s=training, wall_s=wall, gpu_hours=hours, energy_kwh=energy,
        tdp_w=watts, cost_usd=cost, parameters=result.model.active_parameters,
    )  # fmt: skip

"""Reading what turns the time of a run into energy, cost and wall-clock time, and its estimate."""

from __future__ import annotations

from memcalc.cli.pace import only_one, positive
from memcalc.cli.parse import Arguments
from memcalc.engine.device_side import Device
from memcalc.engine.results import Estimate
from memcalc.errors import ConfigError
from memcalc.planning import train_time as planning
from memcalc.planning.failures import ALWAYS, Availability, availability

#: Options that state how much of the time is lost; one of them at most.
FAILURES = ("availability", "mtbf-hours", "node-mtbf-hours")
_PAUSES = ("checkpoint-minutes", "restart-minutes")
_MINUTE_S, _HOUR_S = 60.0, 3600.0
_NODE_GPUS = 8


def terms(arguments: Arguments, device: Device, result: Estimate) -> planning.Terms:
    """Price, power and availability as stated. Raises ConfigError."""
    fraction, pue = positive(arguments, "power-fraction"), positive(arguments, "pue")
    if fraction is not None and fraction > 2:
        raise ConfigError(f"--power-fraction: got {fraction:g}; rule: of the TDP, at most 2")
    if pue is not None and not 1 <= pue <= 10:
        raise ConfigError(
            f"--pue: got {pue:g}; rule: 1 to 10; nearest valid: {1 if pue < 1 else 10}"
        )
    return planning.Terms(
        planning.price_of(device.gpu, positive(arguments, "price")),
        planning.POWER_FRACTION if fraction is None else fraction,
        planning.PUE if pue is None else pue,
        _availability(arguments, device, result),
    )


def _availability(arguments: Arguments, device: Device, result: Estimate) -> Availability:
    """The share of time that trains: stated, from failures, or 1."""
    name = only_one(arguments, FAILURES)
    alone = [pause for pause in _PAUSES if pause in arguments.options]
    if name not in ("mtbf-hours", "node-mtbf-hours"):
        if alone:
            raise ConfigError(f"--{alone[0]}: got no --mtbf-hours; rule: beside it")
        if name is None:
            return ALWAYS
        factor = positive(arguments, name)
        assert factor is not None
        if factor > 1:
            raise ConfigError(f"--availability: got {factor:g}; rule: above 0, at most 1")
        return Availability(factor, "stated")
    missing = [pause for pause in _PAUSES if pause not in alone]
    if missing:
        raise ConfigError(
            f"--{name}: got no --{missing[0]}; rule: both --{' and --'.join(_PAUSES)}"
        )
    hours = positive(arguments, name)
    pauses = [positive(arguments, pause) for pause in _PAUSES]
    assert hours is not None and pauses[0] is not None and pauses[1] is not None
    gpus = planning.gpus_of(result)
    units = gpus if name == "mtbf-hours" else -(-gpus // _gpus_per_node(device, result))
    return availability(hours * _HOUR_S, units, pauses[0] * _MINUTE_S, pauses[1] * _MINUTE_S)


def _gpus_per_node(device: Device, result: Estimate) -> int:
    if device.cluster is not None:
        return device.cluster.gpus_per_node
    return int(result.setup["gpus_per_node"] or _NODE_GPUS)

"""Serving at several sizes: need, verdict and times of each, with weights and rates looked up once.

The figures of a size are those that `infer` gives for it alone.
Checked by: unit/test_chart_serving.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from memcalc.engine.device_side import Device
from memcalc.engine.serving.infer_time import Host, serving_time
from memcalc.engine.serving.serving_plan import ServingPlan
from memcalc.engine.serving.serving_results import ServingTime
from memcalc.engine.serving.verdict import max_batch, max_context, needs_of


class Prepared(NamedTuple):
    """A plan with its devices. held: resident bytes of the weights of each place."""

    plan: ServingPlan
    device: Device
    host: Host
    held: tuple[int, ...]


class ServingPoint(NamedTuple):
    """One size. need_bytes: what the GPU with the least room must hold, the free part of a pool apart.

    limit_bytes: what it may hold, an engine's share of the device; None without a GPU.
    """

    batch: int
    context: int
    prompt: int
    need_bytes: int
    limit_bytes: int | None
    weights_bytes: int
    kv_cache_bytes: int
    fits: bool | None
    time: ServingTime


def points(of: Prepared, sizes: Iterable[tuple[int, int]]) -> list[ServingPoint]:
    """The point of each (batch, context)."""
    return [_point(of, batch, context) for batch, context in sizes]


def _point(of: Prepared, batch: int, context: int) -> ServingPoint:
    plan = of.plan.sized(batch, context)
    need = min(needs_of(plan, of.device, of.held), key=lambda one: one.room_bytes)
    needed = need.allocated_bytes + need.driver_bytes
    limit = need.usable_bytes
    if need.pool_bytes is not None:
        limit = needed - need.memory.cache_bytes + need.pool_bytes
    time, _ = serving_time(plan, of.device, of.host, of.held)
    return ServingPoint(
        batch=batch,
        context=context,
        prompt=plan.resolved.prompt,
        need_bytes=needed,
        limit_bytes=limit,
        weights_bytes=need.memory.weights_bytes,
        kv_cache_bytes=need.memory.cache_bytes,
        fits=need.fits,
        time=time,
    )


def limits(of: Prepared) -> tuple[int | None, int | None]:
    """Largest batch at the plan's context, longest context at its batch; None without a GPU."""
    return max_batch(of.plan, of.device, of.held), max_context(of.plan, of.device, of.held)

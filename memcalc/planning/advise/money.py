"""Changes that cost money: more GPUs of the same kind, or GPUs with more memory or speed.

More GPUs share the states (FSDP unless the setup shards already); the batch stays where it divides.
Other GPUs are those of the same vendor with more memory. Checked by: unit/test_advise.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

from memcalc.inputs.hardware import Gpu, load_gpu
from memcalc.inputs.profiles import profile_names
from memcalc.planning.advise.change import Change, Situation, Value
from memcalc.planning.advise.price import Priced, Prices
from memcalc.planning.train_time import price_of

#: Times as many GPUs are tried.
_TIMES: Final = (2, 4, 8, 16, 32, 64, 128, 256, 512)


def more_gpus(at: Situation) -> Iterator[Change]:
    """The same setup on more GPUs, its states shared over them."""
    cluster = at.case.device.cluster
    most = None if cluster is None else cluster.gpus
    for times in _TIMES:
        gpus = at.gpus * times
        if most is not None and gpus > most:
            return
        copies = at.copies * times
        options: dict[str, Value] = {"gpus": str(gpus), "dp": None}
        if not at.setup["fsdp"] and not at.setup["zero"]:
            options["fsdp"] = True
        same = at.same_batch(copies, at.micro)
        words = f"{times} times the GPUs"
        if same is None:
            options |= {"grad-accum": None, "global-batch": None}
            if "global-batch" in at.options:  # which the micro-batch followed from
                options["micro-batch"] = str(at.micro)
            words += f"; the batch grows to {at.micro * copies} sequences"
        else:
            options |= same
        yield Change("gpus", "money", options, words)


def other_gpus(at: Situation) -> Iterator[Change]:
    """The same setup on GPUs of more memory, least first; none beside a named cluster."""
    gpu = at.case.device.gpu
    if gpu is None or at.case.device.cluster is not None:
        return
    for other in _by_memory():
        if other.total_bytes > gpu.total_bytes and other.vendor == gpu.vendor:
            options: dict[str, Value] = {"gpu": other.slug, "gpu-memory": None}
            yield Change("gpu", "money", options, other.name)


def cheapest(prices: Prices, priced: Iterable[Priced]) -> list[Priced]:
    """The cheapest a token first, those without a price after them, by memory."""

    def cost(one: Priced) -> tuple[float, int]:
        known = cost_of(prices.at, one)
        return float("inf") if known is None else known, one.result.memory.usable_bytes or 0

    return sorted(priced, key=cost)


def cost_of(at: Situation, one: Priced) -> float | None:
    """USD per million tokens at the middle of the GPU's price range; None where it has none."""
    slug, speed = one.result.setup["gpu"], one.result.time.tokens_per_s
    gpu = at.case.device.gpu
    if slug is None or not speed:
        return None
    price = price_of(gpu if gpu is not None and slug == gpu.slug else load_gpu(slug)[0], None)
    return None if price is None else (price.low + price.high) / 2 * one.gpus / 3600.0 / speed * 1e6


@lru_cache(maxsize=1)
def _by_memory() -> tuple[Gpu, ...]:
    gpus = [load_gpu(name)[0] for name in profile_names("gpus")]
    return tuple(sorted(gpus, key=lambda gpu: gpu.total_bytes))

"""States of Megatron's ranks for many layouts at once: bytes, the optimizer's seconds, sums over dp.

An option says how states are held: whole on every rank, or divided over dp x cp or over one of several
replicas of it (the distributed optimizer), and whether gradients are summed beside backward and parameters
gathered beside forward. Arrays have one element a layout; all layouts have the same stages, and the chunks
of every way to cut them are priced together. The exchanges are those of `timing/exchanges_data.py`, in
arrays. Checked by: property/test_search_grid.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from memcalc.engine.parallel.megatron.megatron_buffers import BUCKET_STEP, bucket_elements
from memcalc.engine.parallel.network.communication import ends_stride
from memcalc.engine.search.lane_wires import LaneWires
from memcalc.engine.search.weights import Chunk, Weights
from memcalc.inputs.rates import Rates


class StatesOption(NamedTuple):
    """zero 1: the distributed optimizer; replicas: of dp x cp, each with all states."""

    zero: int = 0
    replicas: int = 1
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False


class Once(NamedTuple):
    """Seconds of exchanges of a step: alone; buckets beside the last backward and the last bucket after it;
    gathers beside the first forward. Shape (layouts, classes)."""

    alone: Any
    beside: Any
    last: Any
    ahead: Any


class Held(NamedTuple):
    """What an option makes of every layout: where it is possible, (layouts,); bytes and elements stepped
    of each class of chunk, and its exchanges, (layouts, classes)."""

    possible: Any
    bytes: Any
    stepped: Any
    once: Once


class StatesGrid:
    """Options over the layouts of one number of stages.

    weights: of each layout; wires: over its degrees, dp and pp included.
    """

    def __init__(
        self, weights: Sequence[Weights], classes: Sequence[Chunk], wires: LaneWires, rates: Rates
    ) -> None:
        import numpy as np

        self.weights, self.classes, self.wires, self.rates = weights, tuple(classes), wires, rates
        degrees = wires.layouts.degrees
        self.dp, self.copies = degrees["dp"], degrees["dp"] * degrees["cp"]
        self.expert_copies = np.maximum(1, wires.layouts.expert_copies)
        self.times = np.array([chunk.times for chunk in classes], float)
        ones = np.ones(len(weights), int)
        self.counts = self._elements(ones, ones)
        self.tensors = np.array([one.tensors() for one in weights], float) @ self.times.T
        self.item, self.width, self.state = weights[0].widths
        self.known: dict[Any, Any] = {}

    def _elements(self, ranks: Any, expert_ranks: Any) -> Any:
        """Elements on a rank of each class, outside experts and experts': (layouts, classes, 2)."""
        import numpy as np

        every = zip(self.weights, ranks.tolist(), expert_ranks.tolist(), strict=True)
        parts = np.array([one.elements(*shared) for one, *shared in every], float)
        return np.einsum("lpe,cp->lce", parts, self.times)

    def held(self, option: StatesOption) -> Held:
        """An option for every layout."""
        import numpy as np

        if option not in self.known:
            shard, experts = self._ranks(option)
            possible = self._possible(option, shard)
            shard, experts = (np.maximum(1, np.where(possible, x, 1)) for x in (shard, experts))
            stepped, bytes_of = self._states(option, shard, experts)
            once = self._once(option, shard, experts)
            self.known[option] = Held(possible, bytes_of, stepped, once)
        found: Held = self.known[option]
        return found

    def stacked(self, options: tuple[StatesOption, ...]) -> Held:
        """Several options: arrays with one more axis before."""
        import numpy as np

        if options not in self.known:
            every = [self.held(option) for option in options]
            once = Once(*(np.array(column) for column in zip(*(one.once for one in every))))  # noqa: B905
            possible, bytes_of, stepped = (
                np.array([getattr(one, name) for one in every])
                for name in ("possible", "bytes", "stepped")
            )
            self.known[options] = Held(possible, bytes_of, stepped, once)
        found: Held = self.known[options]
        return found

    def _ranks(self, option: StatesOption) -> tuple[Any, Any]:
        """Ranks that share states, and experts'."""
        import numpy as np

        if not option.zero:
            return np.ones_like(self.copies), np.ones_like(self.copies)
        return self.copies // option.replicas, self.expert_copies // option.replicas

    def _possible(self, option: StatesOption, shard: Any) -> Any:
        """Layouts of which the option is one that Megatron has, and no other's equal."""
        if not option.zero:
            return (self.copies > 1) | (not option.overlap_grad_reduce)
        even = (self.copies % option.replicas == 0) & (self.expert_copies % option.replicas == 0)
        return even & (shard > 1)

    def _states(self, option: StatesOption, shard: Any, experts: Any) -> tuple[Any, Any]:
        """Elements stepped and bytes of each class: (layouts, classes)."""
        key = (option.zero, option.replicas, option.overlap_grad_reduce)
        if key not in self.known:
            parts = self._elements(shard, experts).sum(axis=2) if option.zero else None
            whole = self.counts.sum(axis=2)
            stepped = whole if parts is None else parts
            bytes_of = whole * (self.item + self.width) + stepped * self.state
            if option.zero:
                bytes_of = bytes_of + self._padding(option, shard, experts)
            self.known[key] = (stepped, bytes_of)
        found: tuple[Any, Any] = self.known[key]
        return found

    def _padding(self, option: StatesOption, shard: Any, experts: Any) -> Any:
        """Bytes of parameter and gradient buffers that hold no element."""
        import numpy as np

        total = np.zeros(self.tensors.shape)
        odd = [place for place, one in enumerate(self.weights) if not one.is_even]
        for expert, ranks in ((0, shard), (1, experts)):
            steps = np.lcm(ranks, BUCKET_STEP)
            counts = self.counts[:, :, expert].astype(np.int64)
            total += -counts % steps[:, None]
            for number, chunk in enumerate(self.classes):
                in_buckets = option.overlap_grad_reduce and chunk.begins
                for place in range(len(self.weights)) if in_buckets else odd:
                    count = int(counts[place, number])
                    if count:
                        bucket = bucket_elements(int(self.dp[place])) if in_buckets else None
                        more = self.weights[place].padding(
                            chunk, bool(expert), int(ranks[place]), bucket
                        )
                        total[place, number] += more - -count % int(steps[place])
        return total * (self.item + self.width)

    def _once(self, option: StatesOption, shard: Any, experts: Any) -> Once:
        """Exchanges of every class: gradients outside experts, then experts'."""
        import numpy as np

        sums = [np.zeros(self.tensors.shape) for _ in Once._fields]
        for expert in (0, 1):
            count = self.counts[:, :, expert]
            if count.any():
                ranks = self.expert_copies if expert else self.copies
                self._add(sums, option, (count, ranks, experts if expert else shard, expert))
        sums[0] = sums[0] + self._after(option)
        return Once(*sums)

    def _add(self, sums: list[Any], option: StatesOption, of: tuple[Any, Any, Any, int]) -> None:
        """Add the reductions and the gather of some elements."""
        import numpy as np

        count, ranks, shard, expert = of
        d = self.wires.layouts.degrees
        stride = d["etp"] * d["ep"] if expert else d["tp"]
        some, is_cut = (count > 0) & (ranks > 1)[:, None], shard > 1
        size = count * self.width
        bucket = np.maximum(bucket_elements(1), ranks * (bucket_elements(1000) // 1000))[:, None]
        buckets = np.maximum(1, np.rint(count / bucket)) if option.overlap_grad_reduce else 1.0
        whole = self._price("all_reduce", size / buckets, np.where(is_cut, 1, ranks), stride)
        self._reduced(sums, option, some * whole, buckets)
        if not option.zero:
            return
        cut = self._price("reduce_scatter", size / buckets, shard, stride)
        self._reduced(sums, option, some * cut, buckets)
        if option.replicas > 1:
            copies = np.where(is_cut, option.replicas, 1)
            step = d["tp"] * np.maximum(1, self.copies // option.replicas)
            part = -(-size // shard[:, None])
            again = self._price("all_reduce", part / buckets, copies, step)
            self._reduced(sums, option, some * again, buckets)
        at = 3 if option.overlap_param_gather else 0
        gathered = self._price("all_gather", count * self.item, shard, stride)
        sums[at] = sums[at] + some * gathered

    def _price(self, kind: str, size: Any, ranks: Any, stride: Any) -> Any:
        """Seconds of a call, (layouts, classes); the same call of two options is priced once."""
        key = (kind, size.tobytes(), ranks.tobytes(), stride.tobytes())
        if key not in self.known:
            self.known[key] = self.wires.group_s(kind, size, ranks, stride)
        return self.known[key]

    def _reduced(self, sums: list[Any], option: StatesOption, seconds: Any, buckets: Any) -> None:
        """Add a reduction, whole or in buckets of so many seconds each."""
        if not option.overlap_grad_reduce:
            sums[0] = sums[0] + seconds
            return
        sums[1] = sums[1] + (buckets - 1) * seconds
        sums[2] = sums[2] + seconds

    def _after(self, option: StatesOption) -> Any:
        """A tied embedding's gradient, and the norm of all gradients: (layouts, classes)."""
        import numpy as np

        d, plan = self.wires.layouts.degrees, self.weights[0].plan
        total = np.zeros(self.tensors.shape)
        ends = [chunk.begins != chunk.finishes for chunk in self.classes]
        if plan.config.tie_word_embeddings and any(ends):
            size = np.array([one.numel(one.first[0]) for one in self.weights], float) * self.width
            stages = d["tp"] * d["cp"] * d["dp"]
            pairs, domain = (
                zip(stages.tolist(), d["pp"].tolist(), strict=True),
                self.wires.wires.domain,
            )
            stride = np.array([ends_stride(stage, pp, domain) for stage, pp in pairs])
            seconds = self._price("all_reduce", size, np.full_like(d["pp"], 2), stride)
            total = total + seconds[:, None] * np.array(ends)
        if plan.resolved.setup.grad_clip:
            ranks = d["tp"] * d["pp"] * (d["cp"] * d["dp"] if option.zero else 1)
            small = np.full(len(ranks), 4.0)
            total = total + self._price("all_reduce", small, ranks, np.ones_like(ranks))[:, None]
        return total

    def stepping_s(self, option: StatesOption, kinds: Sequence[Sequence[int]]) -> Any:
        """The optimizer's seconds of the slowest kind of rank, (layouts,). kinds: its classes of chunk."""
        import numpy as np

        key = ("stepping", option.zero, option.replicas, str(kinds))
        if key not in self.known:
            held, found = self.held(option), np.zeros(len(self.weights))
            counts = np.array([held.stepped[:, list(own)].sum(axis=1) for own in kinds])
            tensors = np.array([self.tensors[:, list(own)].sum(axis=1) for own in kinds])
            most = (counts == counts.max(axis=0)) & (tensors == tensors.max(axis=0))
            first, has_most = most.argmax(axis=0).tolist(), most.any(axis=0).tolist()
            both = np.stack([counts, tensors], axis=-1).astype(np.int64)
            for place in np.flatnonzero(held.possible).tolist():
                own = [first[place]] if has_most[place] else list(range(len(kinds)))
                found[place] = max(  # more of both is never faster
                    self.weights[place].optimizer_s(count, many, self.rates)
                    for count, many in both[own, place].tolist()
                )
            self.known[key] = found
        return self.known[key]

"""ZeRO-3 on the timeline: parameters are gathered module by module, ahead of use, and let go.

Before a module runs its missing parameters are gathered, then those of the next modules up to
`prefetch` elements, while no more than `most_live` are whole. One parameter is gathered in place;
several go into one flat tensor, from which each is copied once the first of them is needed, and which
lives until the last of them is. After a module ran its parameters are freed, unless they are small
(`persistent`: whole for the whole run, not on the timeline) or needed again within `reuse` elements of
modules to come. The order of modules is that of the step before, as DeepSpeed records it.
Memory that other streams still read is freed here as it is in the order of calls.
Source: DeepSpeed 0.18.2, runtime/zero/partitioned_param_coordinator.py (fetch_sub_module,
release_sub_module, __params_to_release), partition_parameters.py (all_gather_coalesced,
AllGatherCoalescedHandle), parameter_offload.py. Checked by: unit/test_deepspeed_timeline.py.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.injectors import Hooks
from memcalc.engine.parallel.deepspeed.zero_modules import Module, Visit, noting
from memcalc.engine.sizes import number
from memcalc.engine.tensors import Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build


class Gathers(NamedTuple):
    """The injector. modules: of the forward pass; recomputed: blocks whose forward runs again.

    prefetch, most_live, reuse, persistent: elements, as above. dtype: of gathered parameters. on_host:
    this rank's parts wait there and are copied to the GPU first; one rank copies whole parameters.
    recorded: the order of modules where it is no chain there and back. copies: one rank gathers as
    several do, through buffers (DeepSpeed before 0.9). evaluates: steps have no backward.
    """

    modules: tuple[Module, ...]
    recomputed: frozenset[int]
    ranks: int
    dtype: str
    prefetch: int
    most_live: int
    reuse: int
    persistent: int
    on_host: bool = False
    recorded: tuple[Visit, ...] = ()
    copies: bool = False
    evaluates: bool = False

    def without_backward(self) -> Gathers:
        """The gathers of an evaluation."""
        forward = tuple(visit for visit in self.recorded if visit[0] == "forward")
        return self._replace(recorded=forward, evaluates=True)

    @property
    def through_buffers(self) -> bool:
        """Whether what is gathered passes through buffers; one rank just moves it."""
        return self.ranks > 1 or self.copies

    def start(self, build: Build) -> Hooks:
        """Hooks over a state of its own."""
        live = _Live(self, build)
        before_op = noting(build.tape, live.visit) if self.recorded else live.before_op
        return Hooks(phase=live.phase, before_op=before_op)

    def order(self) -> list[Module]:
        """Modules as a step runs them: forward, then backward, recomputed blocks forward again."""
        if self.recorded:
            named = {(module.block, module.op): module for module in self.modules}
            return [named[block, op] for _, block, op, _ in self.recorded]
        if self.evaluates:
            return list(self.modules)
        blocks: dict[int, list[Module]] = {}
        for module in self.modules:
            blocks.setdefault(module.block, []).append(module)
        last = max(blocks)
        split = max((i for i, m in enumerate(self.modules) if m.block >= 0), default=-1) + 1
        order = [*self.modules, *reversed(self.modules[split:])]
        for block in range(last, -1, -1):
            own = blocks.get(block, [])
            if block in self.recomputed:  # its last module begins backward, and all run again
                order += [*own[-1:], *own]
            order += reversed(own[:-1] if block in self.recomputed else own)
        first = next((i for i, m in enumerate(self.modules) if m.block >= 0), split)
        return [*order, *reversed(self.modules[:first])]


class _Group:
    """Parameters of one gather: their flat tensor until each has been needed."""

    def __init__(self, names: list[str], flat: Tensor | None) -> None:
        self.names, self.flat = names, flat
        self.arrived = False


class _Live:
    """What is whole on this rank, what is on its way, and where in the order of modules it is."""

    def __init__(self, plan: Gathers, build: Build) -> None:
        self.plan, self.tape = plan, build.tape
        self.steps = plan.order()
        self.places: dict[tuple[int, str], deque[int]] = {}
        for index, module in enumerate(self.steps):
            self.places.setdefault((module.block, module.op), deque()).append(index)
        self.visits = {visit: index for index, visit in enumerate(plan.recorded)}
        self.queue = deque(
            (name, size, index)
            for index, module in enumerate(self.steps)
            for name, size in self._partitioned(module)
        )
        self.fetched_for: dict[str, int] = {}
        self.whole: dict[str, Tensor] = {}
        self.coming: dict[str, _Group] = {}
        self.sizes = dict(pair for module in plan.modules for pair in module.parameters)
        self.current = -1
        self.done = -1  # the last step whose parameters were let go

    def _partitioned(self, module: Module) -> list[tuple[str, int]]:
        """The parameters that are not whole all the time."""
        return [pair for pair in module.parameters if pair[1] > self.plan.persistent]

    def phase(self, name: str) -> None:
        """The loss's forward, or the whole step, is over: let go of the module that ran last."""
        if name in ("forward end", "end"):
            self._release()

    def before_op(self, block: int, op: str) -> None:
        """An operator begins: the module before it is done; fetch what this one needs."""
        self._release()
        places = self.places.get((block, op))
        while places and places[0] < self.current:
            places.popleft()
        if not places:
            return
        self._run(places.popleft())

    def visit(self, visit: Visit) -> None:
        """The same, told in which direction: a module that runs twice has two places in the order."""
        self._release()
        index = self.visits.pop(visit, None)
        if index is not None:
            self._run(index)

    def _run(self, step: int) -> None:
        self.current = step
        before = (self.tape.op, self.tape.block)
        self._fetch(step)
        self.tape.at(*before)

    def _fetch(self, step: int) -> None:
        """Gather what is missing, wait for all, and begin what comes next."""
        needed = self._partitioned(self.steps[step])
        self._gather([name for name, _ in needed if name not in self.whole])
        for name, _ in needed:
            self._arrive(name)
        new = {name for name, _ in needed if self.fetched_for.get(name, -1) < step}
        while self.queue and new:
            name, _, index = self.queue.popleft()
            self.fetched_for[name] = index
            new.discard(name)
        self._gather(self._next())

    def _next(self) -> list[str]:
        """Parameters to gather ahead, from the queue."""
        live = sum(self.sizes[name] for name in self.whole.keys() | self.coming.keys())
        room = min(self.plan.most_live - live, self.plan.prefetch)
        chosen: list[str] = []
        total = 0
        while self.queue and total < room:
            name, size, index = self.queue.popleft()
            self.fetched_for[name] = max(self.fetched_for.get(name, -1), index)
            if name not in self.whole and name not in self.coming and name not in chosen:
                chosen.append(name)
                total += size
        return chosen

    def _gather(self, names: list[str]) -> None:
        """Begin to gather parameters that are neither whole nor on their way."""
        names = [name for name in names if name not in self.coming]
        ranks = self.plan.ranks
        total = sum(-(-self.sizes[name] // ranks) * ranks for name in names)
        if len(names) == 1:
            self.tape.at("unshard", self._block(names[0]))
            self.whole[names[0]] = self._empty("param_buffer", total)
            self._parts(names)
        elif names:
            self.tape.at("all_gather", self._block(names[0]))
            flat = self._empty("flat_tensor", total) if self.plan.through_buffers else None
            self._parts(names)
            self.coming |= dict.fromkeys(names, _Group(names, flat))

    def _parts(self, names: list[str]) -> None:
        """Copies of this rank's parts on their way from the host into the flat tensor."""
        if self.plan.on_host and self.plan.through_buffers:
            self.tape.at("all_gather", self._block(names[0]))
            parts = [self._empty("to", -(-self.sizes[n] // self.plan.ranks)) for n in names]
            del parts

    def _arrive(self, name: str) -> None:
        """Wait for a parameter: its whole group is copied out, the flat tensor goes with the last."""
        group = self.coming.pop(name, None)
        if group is None:
            return
        for each in () if group.arrived else group.names:
            self.tape.at("unshard", self._block(each))
            self.whole[each] = self._empty("cat", self.sizes[each])
        group.arrived = True
        if not any(other is group for other in self.coming.values()):
            group.flat = None

    def _release(self) -> None:
        """Free what the modules that ran need no more; a step that did not come has run too."""
        while self.done < self.current:
            self.done += 1
            self._let_go(self.steps[self.done], self.current + 1)

    def _let_go(self, module: Module, after: int) -> None:
        """Free a module's parameters unless a step from `after` on is known to need them soon."""
        doomed = [name for name, _ in self._partitioned(module)]
        doomed = [name for name in doomed if self.fetched_for.get(name, -1) <= after]
        passed = 0
        for following in self.steps[after:] if doomed else ():
            if passed >= self.plan.reuse:
                break
            for name, size in following.parameters:
                if name in doomed:
                    doomed.remove(name)
                passed += size
        for name in doomed:
            if name not in self.coming:
                self.whole.pop(name, None)

    def _empty(self, name: str, elements: int) -> Tensor:
        return self.tape.empty(name, (number(elements),), self.plan.dtype)

    @staticmethod
    def _block(name: str) -> int:
        parts = name.split(".", 2)
        return int(parts[1]) if parts[0] == "layers" else -1

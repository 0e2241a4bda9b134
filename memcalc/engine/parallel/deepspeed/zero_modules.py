"""The parameters of a whole model in the order its modules use them, with their sizes in elements.

DeepSpeed's ZeRO cuts flat lists of parameters and fetches module by module, so what happens when
depends on true sizes: its injectors are given these numbers and every block is traced. Where not every
module has a backward (frozen parameters), or the model is not one chain of blocks (an encoder-decoder),
the order of a step is recorded on a trace, as DeepSpeed records it on a step.
Checked by: unit/test_deepspeed.py, unit/test_deepspeed_tuned.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from memcalc.engine.injectors import Hooks
from memcalc.engine.structure import Beside, Run, Structure, structure_of

if TYPE_CHECKING:
    from memcalc.engine.build import Build
    from memcalc.engine.ledger import OpRecord
    from memcalc.engine.plan import Plan
    from memcalc.engine.tensors import Tape
    from memcalc.inputs.model import ModelConfig

#: Repetitions of a run to trace so that none stands for others.
EVERY_BLOCK = 1 << 20


#: A module at work: forward, backward or recompute, block, operator, and which of the operator's visits
#: in that direction it is (others only look at what it made, or add an adapter's part).
Visit = tuple[str, int, str, int]


class Module(NamedTuple):
    """One operator with parameters: its block (-1 outside), and name and elements of each."""

    block: int
    op: str
    parameters: tuple[tuple[str, int], ...]


def modules_of(plan: Plan) -> tuple[Module, ...]:
    """Every module with parameters in the order of the forward pass; a tied head names its embedding."""
    beside = Beside((), plan.ends)
    structure, runs = structure_of(
        plan.config, plan.kernels, plan.kinds, plan.dims, plan.keeps_gradients, beside
    )
    key = ("modules", tuple(run.count for run in runs), tuple(sorted(plan.values.items())))
    known = structure.cache.get(key)
    if not isinstance(known, tuple):
        known = structure.cache[key] = tuple(_in_order(structure, runs, plan.values))
    return _with_shared(known, plan.config)


def _with_shared(modules: tuple[Module, ...], config: ModelConfig) -> tuple[Module, ...]:
    """With the modules that read the embedding again: a decoder beside an encoder, a tied head."""
    table = next((one.parameters for one in modules if one.op == "embedding"), ())
    if config.is_encoder_decoder:
        modules = (*modules, Module(-1, "decoder_embedding", table))
    if config.tie_word_embeddings and table:
        own = next((one.parameters for one in modules if one.op == "lm_head"), ())
        modules = tuple(one for one in modules if one.op != "lm_head")
        modules = (*modules, Module(-1, "lm_head", (*table, *own)))
    return modules


@dataclass(frozen=True)
class _Recorder:
    """An injector that notes the operators of a step that compute, each once a direction.

    Of a linear a product counts, not copies of what it made. All recorders are the same to a
    structure's key.
    """

    heard: list[Visit] = field(default_factory=list, compare=False)

    def start(self, build: Build) -> Hooks:
        """Hooks of one trace."""
        live = _Listening(build.tape, self.heard)
        return Hooks(before_op=noting(build.tape, live.note), phase=live.phase)


class _Listening:
    """One trace: whether a visit computed anything is known when the next begins."""

    def __init__(self, tape: Tape, heard: list[Visit]) -> None:
        self.tape, self.heard = tape, heard
        self.last: Visit | None = None
        self.begun = 0
        self.known: set[tuple[str, int, str]] = set()
        self.linears: set[tuple[int, str]] = set()

    def note(self, visit: Visit) -> None:
        """An operator begins. What is recomputed is so before the operator that asked computes."""
        last = self.last
        self._settle(last is not None and (last[0], visit[0]) == ("backward", "recompute"))
        self.last, self.begun = visit, len(self.tape.kernels)

    def phase(self, name: str) -> None:
        """Backward is over."""
        if name == "end":
            self._settle(False)

    def _settle(self, computes: bool) -> None:
        ran = [
            (one.block, one.op, one.ran.kind == "gemm") for one in self.tape.kernels[self.begun :]
        ]
        self.linears |= {(block, op) for block, op, product in ran if product}
        if self.last is None or self.last[:3] in self.known:
            return
        where = self.last[1:3]
        wanted = (*where, True), (*where, where in self.linears)
        if computes or any(one in ran for one in wanted):
            self.known.add(self.last[:3])
            self.heard.append(self.last)


def noting(tape: Tape, note: Callable[[Visit], None]) -> Callable[[int, str], None]:
    """A before_op hook that says in which direction an operator begins, and how often it has."""
    counts: Counter[tuple[str, int, str]] = Counter()

    def begun(block: int, op: str) -> None:
        direction = "backward" if tape.phase == "backward" else "forward"
        what = ("recompute" if tape.recomputing else direction, block, op)
        counts[what] += 1
        note((*what, counts[what]))

    return begun


def recorded_order(plan: Plan, modules: tuple[Module, ...]) -> tuple[Visit, ...]:
    """The modules of a step as it runs them, each once a direction."""
    recorder = _Recorder()
    beside = Beside((recorder,), plan.ends, EVERY_BLOCK)
    structure, _ = structure_of(plan.config, plan.kernels, plan.kinds, plan.dims, False, beside)
    if recorder.heard:
        names = {(module.block, module.op) for module in modules}
        heard = (visit for visit in recorder.heard if visit[1:3] in names)
        structure.cache["order of modules"] = tuple(heard)
    known = structure.cache["order of modules"]
    assert isinstance(known, tuple)
    return known


def _in_order(structure: Structure, runs: tuple[Run, ...], values: dict[str, int]) -> list[Module]:
    before: list[Module] = []
    after: list[Module] = []
    blocks: dict[int, list[Module]] = {}
    for (block, op), record in structure.records.items():
        if not record.params:
            continue
        if block >= 0:
            blocks.setdefault(block, []).append(_module(block, op, record, values))
        else:
            (after if blocks else before).append(_module(-1, op, record, values))
    layers: list[Module] = []
    first = number = 0
    for run in runs:
        for _ in range(run.count):
            for position in range(len(run.pattern)):
                layers += [_placed(one, number) for one in blocks.get(first + position, [])]
                number += 1
        first += run.traced * len(run.pattern)
    return [*before, *layers, *after]


def _module(block: int, op: str, record: OpRecord, values: dict[str, int]) -> Module:
    parameters = tuple((name, size.value(values)) for name, size in record.params.items())
    return Module(block, op, parameters)


def _placed(module: Module, block: int) -> Module:
    """The same module of another block, its parameters under their full names."""
    names = tuple((f"layers.{block}.{name}", size) for name, size in module.parameters)
    return Module(block, module.op, names)


def parameters_of(modules: tuple[Module, ...]) -> tuple[tuple[str, int], ...]:
    """Every parameter once, in the order of first use: DeepSpeed's flat order."""
    return tuple(dict(pair for module in modules for pair in module.parameters).items())

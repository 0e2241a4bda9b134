"""Change: options of a command line that differ from the setup as stated, and what they cost the user.

Changes are stated as options, so that every piece of advice is the command that prices it. Kinds are
in the order of their cost to the user:
    same      the same training on the same GPUs: kernels, recomputation, layouts, offload
    money     more GPUs, or other ones
    numerics  the same training in other arithmetic: 8-bit states, 16-bit weights, fp8 products
    method    other training: adapters, shorter sequences, another batch
Checked by: unit/test_advise.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from memcalc.engine.results import Estimate
from memcalc.planning.cases import Case

#: Kinds of change, cheapest for the user first.
KINDS: Final = ("same", "money", "numerics", "method")
#: The text of an option; True for a flag, a list for one that may be repeated, None: taken away.
Value = str | bool | list[str] | None
Options = Mapping[str, Value]


class Change(NamedTuple):
    """Options that change together.

    axis: changes of one axis exclude each other. words: what it does where the options do not say it.
    """

    axis: str
    kind: str
    options: Options
    words: str = ""


class Situation(NamedTuple):
    """The setup as stated: its options, its case, its estimate, and what others are measured by."""

    options: Options
    case: Case
    result: Estimate

    @property
    def setup(self) -> Mapping[str, Any]:
        """Every resolved input."""
        return self.result.setup

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return int(self.setup["gpus"] or 1)

    @property
    def node(self) -> int:
        """GPUs of a node."""
        cluster = self.case.device.cluster
        known = 8 if cluster is None else cluster.gpus_per_node
        return int(self.setup["gpus_per_node"] or known)

    @property
    def copies(self) -> int:
        """Ranks that split the batch."""
        return int(self.setup["dp"] or 1)

    @property
    def micro(self) -> int:
        """Sequences of a micro-batch."""
        return int(self.setup["micro_batch_size"])

    @property
    def batch(self) -> int:
        """Sequences of an optimizer step."""
        return int(self.setup["global_batch"])

    @property
    def fits(self) -> bool:
        """The verdict of the setup as stated."""
        return self.result.fits is True

    def same_batch(self, copies: int, micro: int) -> dict[str, Value] | None:
        """Options of this micro-batch over so many copies at the same batch; None: it does not divide."""
        if self.batch % (copies * micro):
            return None
        return {
            "micro-batch": str(micro), "grad-accum": None, "global-batch": str(self.batch)
        }  # fmt: skip


def kind_of(changes: Iterable[Change]) -> str:
    """The kind of several changes together: that of the dearest."""
    return max((change.kind for change in changes), key=KINDS.index, default=KINDS[0])


def merged(base: Options, changes: Iterable[Change]) -> dict[str, Any]:
    """The options of a setup with changes made to it."""
    found = dict(base)
    for change in changes:
        found |= change.options
    return {name: value for name, value in found.items() if value is not None}


def words_of(base: Options, changes: Iterable[Change]) -> str:
    """The options that differ from those stated, as words of a command line; `no --tp` for one gone."""
    new = merged(base, changes)
    words = []
    for name, value in new.items():
        if base.get(name) == value:
            continue
        words.append(f"--{name}" if value is True else f"--{name} {_text(value)}")
    gone = [f"no --{name}" for name in base if name not in new and name not in _FOLLOWING]
    return " ".join([*words, *gone])


#: Options that follow from others that are named.
_FOLLOWING: Final = frozenset({"grad-accum", "dp"})


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)

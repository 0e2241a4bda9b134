"""Build: what the description of a block has at hand (tape, config, kernels, dims, parameters)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from memcalc.engine.adapters.bottleneck import after_linear
from memcalc.engine.adapters.ia3 import rescaled
from memcalc.engine.adapters.leaf import is_rescaled, trains
from memcalc.engine.adapters.linear import adapted, packed_linear
from memcalc.engine.adapters.prompt import PrefixCache
from memcalc.engine.aten.closed import fp8_linear
from memcalc.engine.aten.matmul import linear
from memcalc.engine.aten.pointwise import to
from memcalc.engine.blocks.cache import KeyCache
from memcalc.engine.injectors import Hooks, Injector, begin_op
from memcalc.engine.kernels import BlockKind, Kernels
from memcalc.engine.ledger import OpRecord
from memcalc.engine.parallel.tensor.placed import PART, Placed
from memcalc.engine.parallel.tensor.tensor_layers import ROWS, bias_placed, entered, left
from memcalc.engine.sizes import ZERO, Size
from memcalc.engine.tensors import Shape, Tape, Tensor
from memcalc.inputs.model import ModelConfig

#: Linears of the blocks that fp8 recipes leave in 16 bit; so is everything outside the blocks.
#: Before names of a second model's parameters that do not train.
REFERENCE = "reference."
_NOT_FP8 = frozenset({"router", "shared_expert_gate"})


class Handed(NamedTuple):
    """Storages that outlive a stage's micro-batch: the stream it sends (or its loss), its gradient.

    received: bytes of the stream it was given, which its gradient has too.
    """

    stream: int = -1
    gradient: int = -1
    received: Size = ZERO


@dataclass(eq=False)
class Build:
    """One trace in the making. dims maps a dim's letter to its Size (the constant 1 where it is 1)."""

    tape: Tape
    config: ModelConfig
    kernels: Kernels
    dims: dict[str, Size]
    casts: dict[str, Tensor] | None = None
    kind: BlockKind = BlockKind()
    injectors: tuple[Injector, ...] = ()
    ends: tuple[bool, bool] = (True, True)  # whether embedding, and norm and head, are here
    handed: Handed = Handed()
    hooks: list[Hooks] = field(default_factory=list)
    has_gradients: bool = False  # an earlier micro-batch's exist
    reduces: bool = True  # ranks that split the batch sum their gradients in this micro-batch
    split: bool = False  # backward in two halves
    standing: list[list[Tensor]] = field(default_factory=list)  # what outlives the trace
    fed: set[int] = field(default_factory=set)  # blocks with an input that needs a gradient
    held: Tensor | None = None  # attention weights a block hands to its caller (transformers)
    biases: tuple[Tensor, ...] = ()  # position biases a block hands to its caller (T5)
    cache: KeyCache | None = None  # of keys and values, where the model serves
    beside: str = ""  # before names of a second model's parameters
    borrows: bool = False  # blocks that run again have no parameters of their own
    prefix: PrefixCache | None = None  # trained keys and values (prefix tuning)
    lent: list[Tensor] = field(default_factory=list)  # what the model's caller holds in its forward

    def __getitem__(self, letter: str) -> Size:
        return self.dims[letter]

    def at(self, op: str, part: str) -> None:
        """Enter an op of the ledger: what follows belongs to its row."""
        tape = self.tape
        if tape.op_hooks:
            begin_op(tape, tape.block, op)
        tape.at(op)
        if not tape.recomputing and (tape.block, op) not in tape.records:
            tape.record = tape.records[tape.block, op] = OpRecord(tape.block, op, part)

    @property
    def positions(self) -> Size:
        """Positions of the stream between layers on this rank: all, or a part of the sequence."""
        return self.dims.get("s_t", self.dims["s"])

    def param(
        self, name: str, shape: Shape, dtype: str | None = None, placed: Placed | None = None
    ) -> Tensor:
        """The parameter `name` of the current op, created at first use.

        placed: how the ranks of a divided layer share it; None: each has a part.
        """
        tape = self.tape
        if self.borrows and tape.block >= 0:
            return tape.external(shape, dtype or self.kernels.param_dtype)
        key = self.beside + name if tape.block < 0 else f"layers.{tape.block}.{name}"
        learns = trains(self, name) and self.beside != REFERENCE
        leaf = tape.leaf(key, shape, dtype or self._dtype(learns), learns)
        if self.kernels.dtensor:
            leaf.placed = placed or PART
        if not tape.recomputing:
            record = tape.records[tape.block, tape.op]
            record.params[name] = leaf.numel
        return leaf

    def declare(self, name: str, shape: Shape) -> None:
        """Register a parameter before its use, where a model's code registers it earlier."""
        if self.borrows:
            return
        learns = trains(self, name) and self.beside != REFERENCE
        self.tape.leaf(f"layers.{self.tape.block}.{name}", shape, self._dtype(learns), learns)

    def _dtype(self, learns: bool) -> str:
        """The dtype of a parameter; beside frozen ones in 16 bits those that train are in fp32."""
        kernels = self.kernels
        own = kernels.adapter is not None and kernels.adapter.method == "freeze"
        return "fp32" if own and learns and kernels.autocast else kernels.param_dtype

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """CUDA autocast's weight cache: casts of parameters live until the outermost scope ends."""
        if not self.kernels.autocast or self.casts is not None:
            yield
            return
        self.casts = {}
        try:
            yield
        finally:
            self.casts = None

    def cast_param(self, leaf: Tensor) -> Tensor:
        """A parameter as a matmul reads it: itself, or its autocast copy.

        Of a frozen parameter autocast keeps no copy (at::autocast::cached_cast asks requires_grad).
        """
        if not self.kernels.autocast:
            return leaf
        learns = leaf.requires_grad or bool(self.beside)  # a second model's parameters may learn
        if not self.kernels.caches_casts or not learns:
            return to(leaf, self.kernels.compute_dtype)
        assert self.casts is not None
        known = self.casts.get(leaf.name)
        if known is None:
            known = self.casts[leaf.name] = to(leaf, self.kernels.compute_dtype)
        return known

    def narrow(self, x: Tensor) -> Tensor:
        """x as autocast hands it to a matmul; x itself without autocast.

        PyTorch casts the arguments of a product from the last to the first.
        """
        return to(x, self.kernels.compute_dtype) if self.kernels.autocast else x

    def linear(self, x: Tensor, name: str, features: tuple[Size, Size], bias: bool) -> Tensor:
        """A linear layer (in, out) and what fine-tuning adds to it; see `bare_linear`."""
        if is_rescaled(self, name):
            base = partial(self.bare_linear, name=name, features=features, bias=bias)
            return rescaled(self, x, name, features, base)
        return adapted(  # nothing here may have a name for the result
            self,
            x,
            after_linear(self, self.bare_linear(x, name, features, bias), name),
            name,
            features,
        )

    def bare_linear(self, x: Tensor, name: str, features: tuple[Size, Size], bias: bool) -> Tensor:
        """A linear layer with its parameters `name.weight`, `name.bias`, autocast included.

        The casts come in the order of PyTorch's wrapper: bias, weight, input.
        """
        i, o = features
        x = entered(self, x, name)
        weight = self.param(f"{name}.weight", (o, i))
        b = self.param(f"{name}.bias", (o,), placed=bias_placed(name)) if bias else None
        return left(self, self._product(x, weight, b, name), name)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None, name: str) -> Tensor:
        divided = self.kernels.dtensor is not None and name in ROWS
        plain = bias is None and self.tape.block >= 0 and name not in _NOT_FP8
        fp8 = self.kernels.fp8_linear and plain
        adapter = self.kernels.adapter
        packed = adapter is not None and adapter.quantised is not None and not weight.requires_grad
        if packed and self.tape.block >= 0 and name != "router":
            return packed_linear(self, x, weight, bias)
        if not self.kernels.autocast:
            return fp8_linear(x, weight) if fp8 else linear(x, weight, bias, divided)
        bias = None if bias is None else self.cast_param(bias)
        weight = self.cast_param(weight)
        narrow = to(x, self.kernels.compute_dtype)
        if fp8:
            return fp8_linear(narrow, weight)
        return linear(narrow, weight, bias, divided)

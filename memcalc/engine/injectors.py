"""Injectors: what allocates over time beside the decoder, at named hooks of the timeline.

A sharded run gathers weights before a block and reduces gradients as they become ready; offload
copies, pipeline buffers and bucketed reductions do alike. Each is an Injector: hashable, so that it is
part of the structure's key, and started anew for each trace. What its hooks allocate on the tape lives
on the timeline like everything else, so the peak counts it where it really is.
Checked by: unit/test_injectors.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from memcalc.engine.tensors import Tape, Tensor

if TYPE_CHECKING:
    from memcalc.engine.build import Build


class Hooks(NamedTuple):
    """What an injector does at each hook; None for nothing.

    before_block, after_block: (block, "forward" or "backward"). gradient_ready: a parameter's gradient
    has just been stored or added. before_op: (block, op) of each operator as it begins, forward,
    backward and when it is recomputed. phase: forward; forward end (the loss is there); backward (the
    loss's own gradient is there); end (backward is over, the loss still held). takes_gradients: the
    injector takes the gradients off the parameters, which begin every micro-batch without any.
    """

    before_block: Callable[[int, str], None] | None = None
    after_block: Callable[[int, str], None] | None = None
    gradient_ready: Callable[[Tensor], None] | None = None
    phase: Callable[[str], None] | None = None
    takes_gradients: bool = False
    before_op: Callable[[int, str], None] | None = None


class Injector(Hashable, Protocol):
    """Starts with each trace and returns its hooks, which may hold tensors between calls."""

    def start(self, build: Build) -> Hooks: ...


def aside(tape: Tape, hooks: Hooks) -> Hooks:
    """The same hooks, whose kernels are none of the decoder's operators."""

    def wrapped(hook: Callable[..., None] | None) -> Callable[..., None] | None:
        if hook is None:
            return None

        def run(*place: Any) -> None:
            tape.aside += 1
            try:
                hook(*place)
            finally:
                tape.aside -= 1
                tape.forget()

        return run

    return Hooks(
        wrapped(hooks.before_block), wrapped(hooks.after_block), wrapped(hooks.gradient_ready),
        wrapped(hooks.phase), hooks.takes_gradients, wrapped(hooks.before_op),
    )  # fmt: skip


def enter_block(hooks: list[Hooks], block: int, direction: str) -> None:
    """Run every before_block hook."""
    for one in hooks:
        if one.before_block:
            one.before_block(block, direction)


def leave_block(hooks: list[Hooks], block: int, direction: str) -> None:
    """Run every after_block hook."""
    for one in hooks:
        if one.after_block:
            one.after_block(block, direction)


def enter_phase(hooks: list[Hooks], name: str) -> None:
    """Run every phase hook."""
    for one in hooks:
        if one.phase:
            one.phase(name)


def attach(hooks: list[Hooks], build: Build) -> None:
    """Connect block changes and ready gradients of the backward engine to the hooks."""
    if not hooks:
        return

    def moved(left: int, entered: int) -> None:
        if left >= 0:
            leave_block(hooks, left, "backward")
        if entered >= 0:
            enter_block(hooks, entered, "backward")

    build.tape.block_hooks.append(moved)
    for one in hooks:
        if one.gradient_ready:
            build.tape.gradient_hooks.append(one.gradient_ready)
        if one.before_op:
            build.tape.op_hooks.append(one.before_op)


def begin_op(tape: Tape, block: int, op: str) -> None:
    """Tell the before_op hooks of an operator other than the last."""
    if tape.working != (block, op):
        tape.working = (block, op)
        for begun in tape.op_hooks:
            begun(block, op)

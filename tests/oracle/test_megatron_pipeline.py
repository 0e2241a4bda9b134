"""Megatron's pipeline rules against Megatron-Core's own schedules, run on CPU tensors; else skipped.

The schedules and their communicator are Megatron-Core's (0.14; `pip install megatron-core`, no GPU
needed), sends and receives move nothing, and a chunk of the model is one function that saves nothing:
so all that is alive is what the schedules keep. It is compared after every forward and every backward.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from memcalc.engine.parallel.pipeline.actions import Action, Pipe
from memcalc.engine.parallel.pipeline.pipeline_megatron import megatron_step
from memcalc.engine.parallel.pipeline.pipeline_program import Take
from memcalc.engine.parallel.pipeline.schedules import chunks_of
from memcalc.harness.watch.tracker import StorageTracker

SHAPE = (256, 4, 64)  # (s, b, h), fp32; stubs, losses and counters are nothing beside it
STREAM = 256 * 4 * 64 * 4


@pytest.fixture(scope="module")
def core() -> Any:
    """megatron.core's schedules and communicator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedules = pytest.importorskip("megatron.core.pipeline_parallel.schedules")
        exchange = pytest.importorskip("megatron.core.pipeline_parallel.p2p_communication")
        ends = pytest.importorskip("megatron.core.pipeline_parallel.utils")
    return SimpleNamespace(schedules=schedules, exchange=exchange, ends=ends)


class _Pass(torch.autograd.Function):
    """A new stream, or a number where the loss is; nothing saved."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, is_last: bool) -> Tensor:
        ctx.shape = given.shape
        return torch.empty(() if is_last else SHAPE)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.empty(ctx.shape), None


class _Chunk(nn.Module):
    """A chunk of the model as the schedules see one: it keeps the input it was given."""

    def __init__(self, number: int, is_last: bool, config: Any) -> None:
        super().__init__()
        self.number, self.is_last, self.config = number, is_last, config
        self.weight = nn.Parameter(torch.zeros(1))
        self.input_tensor: Tensor | None = None

    def set_input_tensor(self, given: list[Tensor]) -> None:
        self.input_tensor = given[0]

    def forward(self) -> Any:
        given = self.input_tensor if self.number else self.weight
        return _Pass.apply(given, self.is_last)  # type: ignore[no-untyped-call]


class _Run:
    """One rank's steps; `seen` has (action, streams alive after it)."""

    def __init__(self, core: Any, schedule: str, pipe: Pipe, rank: int) -> None:
        self.core, self.pipe, self.rank = core, pipe, rank
        own = chunks_of(schedule, pipe, rank)
        self.config = _config(core, schedule, pipe)
        last = pipe.pp * pipe.vpp - 1
        self.chunks = [_Chunk(number, number == last, self.config) for number in own]
        self.schedule = schedule
        self.tracker = StorageTracker()
        self.seen: list[tuple[str, int]] = []
        self.group = SimpleNamespace(size=lambda: pipe.pp, rank=lambda: rank)

    def alive(self) -> int:
        """Streams alive, in whole ones."""
        return round(self.tracker.live / STREAM)

    def step(self) -> None:
        """One run of the schedule."""
        self.seen.clear()
        communicator = self.core.exchange.P2PCommunicator(self.group, self.config)
        function = (
            self.core.schedules.forward_backward_pipelining_without_interleaving
            if self.schedule == "1f1b"
            else self.core.schedules.forward_backward_pipelining_with_interleaving
        )
        alone = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
        groups = SimpleNamespace(
            tp=alone, cp=alone, pp=self.group, embd=None, pos_embd=None, dp_cp=alone
        )
        function(
            forward_step_func=self._forward,
            data_iterator=[None] * len(self.chunks),
            model=self.chunks,
            num_microbatches=self.pipe.batches,
            seq_length=SHAPE[0],
            micro_batch_size=SHAPE[1],
            forward_only=False,
            p2p_communicator=communicator,
            grad_finalize_pgs=groups,
        )

    def _forward(self, data: Any, chunk: _Chunk) -> tuple[Tensor, Callable[[Tensor], Any]]:
        self.seen.append(("before F", self.alive()))
        out = chunk()
        self.seen.append(("after F", self.alive()))
        return out, lambda loss: (loss, torch.tensor(1), {})

    def backward(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """backward_step, with what is alive around it."""

        def step(*args: Any, **kwargs: Any) -> Any:
            self.seen.append(("before B", self.alive()))
            out = own(*args, **kwargs)
            self.seen.append(("after B", self.alive()))
            return out

        return step


def _config(core: Any, schedule: str, pipe: Pipe) -> Any:
    from megatron.core.model_parallel_config import ModelParallelConfig

    several = schedule == "interleaved"
    config = ModelParallelConfig(
        pipeline_model_parallel_size=pipe.pp,
        virtual_pipeline_model_parallel_size=pipe.vpp if several else None,
        pipeline_dtype=torch.float32,
        overlap_p2p_comm=several,
        batch_p2p_comm=not several,
        deallocate_pipeline_outputs=True,
    )
    more = {
        "hidden_size": SHAPE[2],
        "microbatch_group_size_per_vp_stage": pipe.pp,
        "calculate_per_token_loss": False,
    }
    for name, value in more.items():  # of a TransformerConfig
        setattr(config, name, value)
    return config


class _Work:
    """A send or receive that is over, and holds its tensor, as NCCL's does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def wait(self) -> None:
        pass


@contextmanager
def _on_this_machine(core: Any, run: _Run) -> Iterator[None]:
    """No process group, no GPU: exchanges move nothing, tensors are made on the host."""
    zeros = torch.zeros

    def moved(**given: Any) -> dict[str, _Work]:
        names = {"tensor_send_prev": "send_prev", "tensor_recv_prev": "recv_prev",
                 "tensor_send_next": "send_next", "tensor_recv_next": "recv_next"}  # fmt: skip
        return {new: _Work(given[old]) for old, new in names.items() if given[old] is not None}

    def batched(**given: Any) -> list[_Work]:
        return list(moved(**given).values())

    schedules, exchange, ends = core.schedules, core.exchange, core.ends
    with (
        mock.patch.object(ends, "get_pg_rank", lambda group: group.rank()),
        mock.patch.object(ends, "get_pg_size", lambda group: group.size()),
        mock.patch.object(torch, "zeros", lambda *a, **k: zeros(*a, **{**k, "device": "cpu"})),
        mock.patch.object(torch.cuda, "current_device", lambda: "cpu"),
        mock.patch.object(torch.cuda, "synchronize", lambda: None),
        mock.patch.object(exchange.dist, "get_global_rank", lambda group, rank: rank),
        mock.patch.object(exchange, "_p2p_ops", moved),
        mock.patch.object(exchange, "_batched_p2p_ops", batched),
        mock.patch.object(schedules, "backward_step", run.backward(schedules.backward_step)),
        mock.patch.object(schedules, "get_model_type", lambda model: None),
    ):
        yield


def of_the_schedules(core: Any, schedule: str, pipe: Pipe, rank: int) -> list[tuple[str, int]]:
    """What is alive around every forward and backward of the second step."""
    run = _Run(core, schedule, pipe, rank)
    with run.tracker, _on_this_machine(core, run):
        run.step()
        run.step()
    return run.seen


def of_the_rules(schedule: str, pipe: Pipe, rank: int) -> list[tuple[str, int]]:
    """The same of a rank's instructions."""
    last = pipe.pp * pipe.vpp - 1

    def streams(kind: str, chunk: int) -> int:
        """The loss, stubs, and the gradient of the first chunk's parameter are no stream."""
        is_none = kind == "stub" or (kind, chunk) in (("stream", last), ("gradient", 0))
        return 0 if is_none else 1

    step = megatron_step(schedule, pipe, rank)
    live = sum(streams(*item[:2]) for item in step.standing)
    seen: list[tuple[str, int]] = []
    for one in step.instructions:
        if isinstance(one, Action):
            seen.append((f"before {one.kind}", live))
            live += streams("stream" if one.kind == "F" else "gradient", one.chunk)
            seen.append((f"after {one.kind}", live))
        else:
            live += streams(*one.item[:2]) * (1 if isinstance(one, Take) else -1)
    return seen


PIPES = [
    *(("1f1b", Pipe(pp, 1, batches)) for pp in (2, 3, 5) for batches in (1, 2, 4, 7)),
    *(("interleaved", Pipe(pp, vpp, pp * n)) for pp in (2, 3, 4) for vpp in (2, 3) for n in (1, 3)),
]


@pytest.mark.parametrize(("schedule", "pipe"), PIPES, ids=str)
def test_streams_alive_are_those_of_megatron(core: Any, schedule: str, pipe: Pipe) -> None:
    for rank in range(pipe.pp):
        expected = of_the_schedules(core, schedule, pipe, rank)
        assert of_the_rules(schedule, pipe, rank) == expected, rank

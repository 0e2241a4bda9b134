"""transformers' models under PEFT, on tensors without data: a micro-batch, or whole AdamW steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import peft
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from memcalc.harness.watch.tracker import Alloc, Event, Peak, StorageTracker
from tests.oracle.support.hf import (
    _KERNEL_NAME,
    _PACKED_SEQUENCES,
    _one_byte_dropout_masks,
    _open_scopes,
    as_config,
    powers_of_cuda,
)
from tests.oracle.support.hf_encoders import SEQ2SEQ, build, inputs_of
from tests.oracle.support.peft_virtual import MASKED, OnHost

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class PeftRun:
    """One run. method: a PeftConfig, or a function that freezes what it does not train.

    base: dtype of the model's own weights. widens: PEFT's autocast_adapter_dtype. checkpoint: none |
    full | reentrant. packed: a format of bitsandbytes for the blocks' linears. Tensors are meta ones, under
    autocast fake ones that claim a cpu. target: tokens of an encoder-decoder's decoder.
    """

    method: peft.PeftConfig | Callable[[Any], None]
    batch: int = 2
    seq: int = 64
    base: str = "bf16"
    autocast: bool = False
    widens: bool = True
    checkpoint: str = "none"
    attention: str = "flash"
    packed: str | None = None
    target: int = 0
    steps: int = 0
    impl: str = "foreach"


@dataclass(frozen=True)
class PeftRecord:
    """params and trainable in elements. events: of the last micro-batch, or of the last step."""

    params: int
    trainable: int
    param_bytes: int
    base: int
    saved: int
    phase_peaks: dict[str, Peak]  # `base` included
    initial: list[Alloc]
    events: list[Event] = field(repr=False)
    optimizer_bytes: int = 0


def run_peft(config: dict[str, Any], run: PeftRun) -> PeftRecord:
    """One forward and backward, or `steps` optimizer steps of which the last is recorded."""
    where = "cpu" if run.autocast else "meta"
    with ExitStack() as stack:
        stack.enter_context(_one_byte_dropout_masks())
        stack.enter_context(mock.patch(_PACKED_SEQUENCES, lambda position_ids: None))
        if run.autocast:
            stack.enter_context(powers_of_cuda())
            stack.enter_context(FakeTensorMode())
        with torch.device(where):
            model = _model(config, run)
            inputs = inputs_of(config, (run.batch, run.seq, run.target))
            ids = inputs["labels"]
        _open_scopes(model.get_base_model() if isinstance(model, peft.PeftModel) else model)
        trained = [p for p in model.parameters() if p.requires_grad]
        tracker = StorageTracker(where)
        tracker.track(model, *inputs.values())
        beside = 0
        if run.packed:
            from tests.oracle.support.peft_packed import cuda_code, states_of

            states = states_of(model)
            tracker.track(states)
            beside = sum({id(one): one.nbytes for one in states}.values())
            stack.enter_context(cuda_code())
        if run.steps:
            return _steps(model, ids, run, tracker, stack)
        base, initial = tracker.live, tracker.live_storages()
        with tracker:
            with torch.autocast("cpu", torch.bfloat16, enabled=run.autocast):
                loss = model(**inputs, **({} if encodes(config) else {"use_cache": False})).loss
            saved = tracker.live - base
            tracker.set_phase("backward")
            loss.backward()
            del loss
    return PeftRecord(
        params=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in trained),
        param_bytes=beside + sum(p.nbytes for p in model.parameters()),
        base=base,
        saved=saved,
        phase_peaks=tracker.phase_peaks,
        initial=initial,
        events=list(tracker.events),
    )


def encodes(config: dict[str, Any]) -> bool:
    """Whether this is a model with an encoder."""
    return config["model_type"] in (*SEQ2SEQ, "bert")


def _base(config: dict[str, Any], run: PeftRun) -> Any:
    if encodes(config):
        return build(config, run.attention, _DTYPES[run.base])
    whole = as_config(config)
    whole.use_cache = False
    attention = {"flash": _KERNEL_NAME, "efficient": MASKED}.get(run.attention, run.attention)
    model = AutoModelForCausalLM.from_config(
        whole, attn_implementation=attention, dtype=_DTYPES[run.base]
    )
    return model.train()


def _model(config: dict[str, Any], run: PeftRun) -> Any:
    model = _base(config, run)
    if run.checkpoint != "none":
        model.gradient_checkpointing_enable({"use_reentrant": run.checkpoint == "reentrant"})
    if isinstance(run.method, peft.PeftConfig):
        if run.packed:
            from tests.oracle.support.peft_packed import pack

            pack(model, run.packed)
        with _as_made(run):
            made = peft.get_peft_model(model, run.method, autocast_adapter_dtype=run.widens).train()
        if run.method.is_prompt_learning:
            made.prompt_tokens = {name: OnHost(run.method) for name in made.prompt_tokens}
        return made
    run.method(model)
    return model


@contextmanager
def _as_made(run: PeftRun) -> Iterator[None]:
    """Adapters are made in the dtype they shall have.

    PEFT moves them to the base's dtype once made, but not on meta, and fake tensors cannot be moved.
    """
    dtype = torch.float32 if run.widens else _DTYPES[run.base]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with mock.patch.object(torch.nn.Module, "to", lambda self, *_, **__: self):
            yield
    finally:
        torch.set_default_dtype(before)


def _steps(
    model: Any, ids: torch.Tensor, run: PeftRun, tracker: StorageTracker, stack: ExitStack
) -> PeftRecord:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, foreach=run.impl == "foreach", fused=run.impl == "fused")
    supported = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    stack.enter_context(mock.patch(supported, lambda: ["meta", "cpu"]))
    stack.enter_context(tracker)
    saved = 0
    for _ in range(run.steps):
        tracker.reset()
        initial, before = tracker.live_storages(), tracker.live
        tracker.set_phase("forward")
        with torch.autocast("cpu", torch.bfloat16, enabled=run.autocast):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        saved = tracker.live - before
        tracker.set_phase("backward")
        loss.backward()
        del loss
        tracker.set_phase("optimizer")
        optimizer.step()
        tracker.set_phase("zero_grad")
        optimizer.zero_grad(set_to_none=True)
    return PeftRecord(
        params=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in trained),
        param_bytes=sum(p.nbytes for p in model.parameters()),
        base=before,
        optimizer_bytes=sum(
            value.nbytes
            for state in optimizer.state.values()
            for name, value in state.items()
            if name != "step" or run.impl == "fused"  # of the others it is a scalar on the host
        ),
        saved=saved,
        phase_peaks=tracker.phase_peaks,
        initial=initial,
        events=list(tracker.events),
    )

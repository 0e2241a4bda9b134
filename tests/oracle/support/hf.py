"""Models of transformers from a configuration: saved bytes, peaks, events of one micro-batch."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from memcalc.harness.watch.scopes import enter_loss, op
from memcalc.harness.watch.tracker import Alloc, Event, Peak, StorageTracker

_aten = torch.ops.aten
#: transformers branches on names with "flash" in them; under this one it builds no mask.
_KERNEL_NAME = "direct_kernel"
_PACKED_SEQUENCES = "transformers.masking_utils.find_packed_sequence_indices"


@dataclass(frozen=True)
class HfRecord:
    """One forward and backward. saved: bytes the forward left; phase_peaks include `base`."""

    params: int
    param_bytes: int
    base: int  # parameters, buffers and token ids
    saved: int
    peak_over_base: int
    peak_at: tuple[str, str, str]
    phase_peaks: dict[str, Peak]
    initial: list[Alloc]
    events: list[Event]


def run_hf(
    config: dict[str, Any] | PretrainedConfig,
    batch: int,
    seq: int,
    checkpoint: bool = False,
    attention: str = "flash",
    experts: str | None = None,
    device: str | None = None,
    autocast: bool = False,
) -> HfRecord:
    """Run a bf16 model in training mode with labels equal to the ids.

    autocast: fp32 parameters under bf16 autocast instead, on fake cpu tensors (meta tensors ignore
    it). The CPU's rules cast what CUDA's cast in these models, but for powers, which are patched;
    LayerNorm's input is fp32 either way.

    attention: "flash" calls aten's kernel and ignores masks, caps, sinks and windows; "eager" and
    "sdpa" are the family's own. experts: "grouped_mm" (the library's choice when None),
    "batched_mm" or "eager", which no tensor without data can run (it asks which experts were
    hit). device: "meta", where LayerNorm keeps fp32 statistics as on CUDA, or "fake" (cpu), where
    sdpa picks a flash kernel ("meta" takes it apart); None chooses "fake" for sdpa and "meta"
    otherwise.
    """
    device = device or ("fake" if attention == "sdpa" or autocast else "meta")
    config = as_config(config)
    config.use_cache = False
    where = "cpu" if device == "fake" else device
    dtype = torch.float32 if autocast else torch.bfloat16
    implementation = _KERNEL_NAME if attention == "flash" else attention
    with ExitStack() as stack:
        stack.enter_context(_one_byte_dropout_masks())
        # The model asks whether sequences are packed; they are not, as its own position ids tell.
        stack.enter_context(mock.patch(_PACKED_SEQUENCES, lambda position_ids: None))
        if device == "fake":
            stack.enter_context(FakeTensorMode())
        if autocast:
            stack.enter_context(powers_of_cuda())
        with torch.device(where):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=implementation, dtype=dtype
            )
            ids = torch.zeros(batch, seq, dtype=torch.long)
        if experts is not None:
            model.set_experts_implementation(experts)
        model.train()
        if checkpoint:
            model.activation_checkpointing_enable({"use_reentrant": False})
        _open_scopes(model)
        return recorded(
            model, {"ids": ids}, lambda: model(input_ids=ids, labels=ids, use_cache=False), autocast
        )


def recorded(
    model: nn.Module, inputs: dict[str, Tensor], forward: Callable[[], Any], autocast: bool
) -> HfRecord:
    """One forward, whose result holds a loss, and one backward; under bf16 autocast if asked."""
    tracker = StorageTracker(next(model.parameters()).device.type)
    tracker.track(model, *{id(t): t for t in inputs.values()}.values())
    base, initial = tracker.live, tracker.live_storages()
    with tracker:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = forward().loss
        saved = tracker.live - base
        tracker.set_phase("backward")
        loss.backward()
        del loss
    return HfRecord(
        params=sum(p.numel() for p in model.parameters()),
        param_bytes=sum(p.nbytes for p in model.parameters()),
        base=base,
        saved=saved,
        peak_over_base=tracker.peak - base,
        peak_at=tracker.peak_at,
        phase_peaks=tracker.phase_peaks,
        initial=initial,
        events=list(tracker.events),
    )


def as_config(config: dict[str, Any] | PretrainedConfig) -> PretrainedConfig:
    """A fresh configuration object; a dict needs model_type, as in config.json."""
    if isinstance(config, PretrainedConfig):
        config = config.to_dict()
    options = dict(config)
    return AutoConfig.for_model(options.pop("model_type"), **options)


def _kernel_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """aten flash, heads grouped by the kernel; narrow values (multi-head latent) are padded."""
    if torch.is_autocast_enabled("cpu"):  # as CUDA's rules do for this kernel
        query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
    width = value.shape[-1]
    if width < query.shape[-1]:
        value = F.pad(value, (0, query.shape[-1] - width))
    kernel = _aten._scaled_dot_product_flash_attention
    out = kernel(query, key, value, 0.0, True, scale=scaling)[0]
    return out[..., :width].transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_KERNEL_NAME, _kernel_attention)


@contextmanager
def powers_of_cuda() -> Iterator[None]:
    """torch.pow in fp32, as CUDA's autocast takes it and a CPU's does not."""
    power = torch.pow

    def wide(x: Any, n: Any) -> Tensor:
        return power(x.float() if getattr(x, "dtype", None) is torch.bfloat16 else x, n)

    with mock.patch.object(torch, "pow", wide):
        yield


@contextmanager
def _one_byte_dropout_masks() -> Iterator[None]:
    """Dropout as CUDA runs it: other devices keep a mask in the activations' dtype."""

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return _aten.native_dropout(x, p, True)[0] if training and p else x

    with mock.patch.object(F, "dropout", dropout):
        yield


def _open_scopes(model: Any) -> None:
    """Label what each module runs: "3/mlp.gate_proj" in a block, the module's name elsewhere."""
    for path, module in model.named_modules():
        if path:
            module.forward = _scoped(module.forward, _label(path))
    compute_loss = model.loss_function

    def loss_function(*args: Any, **kwargs: Any) -> Tensor:
        enter_loss()
        with op("loss"):
            return compute_loss(*args, **kwargs)

    model.loss_function = loss_function


def _scoped(forward: Callable[..., Any], label: str) -> Callable[..., Any]:
    @functools.wraps(forward)
    def scoped(*args: Any, **kwargs: Any) -> Any:
        with op(label):
            return forward(*args, **kwargs)

    return scoped


def _label(path: str) -> str:
    if block := re.match(r"(?:.*\.)?(?:layers|h)\.(\d+)(?:\.(.+))?$", path):
        return f"{block[1]}/{block[2] or 'block'}"
    return path.rpartition(".")[2]

"""Updates of feedback training over transformers' models, on tensors without data.

The losses follow TRL 1.0.0 (dpo_trainer, reward_trainer, grpo_trainer, experimental/ppo) operator by
operator, in our own words; models are transformers' own. Every sequence is as long as stated, so no
mask is given to the model, and what a boolean mask selects is the whole completion. Under autocast the
outputs are made fp32 as accelerate does it (utils/operations.py).
Letters: rows sequences of a micro-batch (a pair is two), s positions, r of them the response's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import peft
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from memcalc.harness.watch.scopes import enter_loss
from memcalc.harness.watch.tracker import Alloc, StorageTracker
from tests.oracle.support.hf import (
    _KERNEL_NAME,
    _PACKED_SEQUENCES,
    HfRecord,
    _one_byte_dropout_masks,
    as_config,
    powers_of_cuda,
)

CHUNK = 128
_PADDING = "transformers.PreTrainedModel.warn_if_padding_and_no_attention_mask"


@dataclass(frozen=True)
class FeedbackRun:
    """One update, or a pass without gradients.

    kind: dpo | reward | value | policy | shared | joint | grpo; logps | values | score without gradients.
    reference: of DPO, model | adapter (PEFT's adapters off) | none (precomputed).
    """

    kind: str
    rows: int = 2
    seq: int = 64
    response: int = 24
    autocast: bool = False
    fp32: bool = False
    checkpoint: bool = False
    reference: str = "model"
    beta: bool = True
    lora: int = 0
    keeps_hidden: bool = False
    attention: str = "flash"


def run_feedback(config: dict[str, Any], run: FeedbackRun) -> HfRecord:
    """Forward, loss and backward of one micro-batch; param_bytes are of what trains."""
    where = "cpu" if run.autocast else "meta"
    with ExitStack() as stack:
        stack.enter_context(_one_byte_dropout_masks())
        stack.enter_context(mock.patch(_PACKED_SEQUENCES, lambda position_ids: None))
        stack.enter_context(mock.patch(_PADDING, lambda *_: None))  # asks for the ids' values
        if run.autocast:
            stack.enter_context(powers_of_cuda())
            stack.enter_context(FakeTensorMode())
        with torch.device(where):
            model = _model(config, run)
            frozen = _model(config, run) if run.kind == "dpo" and run.reference == "model" else None
            if run.kind == "joint":
                frozen = _model(config, replace(run, kind="value", lora=0))
            inputs = _inputs(run)
        tracker = StorageTracker(where)
        tracker.track(model, *([frozen] if frozen is not None else []), *inputs.values())
        base, initial = tracker.live, tracker.live_storages()
        with tracker:
            alive: list[Any] = []
            with torch.no_grad() if run.kind in _SCORES else nullcontext():
                loss = _LOSSES[run.kind](run, model, frozen, inputs, alive)
            saved = tracker.live - base
            if run.kind not in _SCORES:
                tracker.set_phase("backward")
                loss.backward()
            del loss, alive
    trained = [model, *([frozen] if frozen is not None else [])]
    return HfRecord(
        params=sum(p.numel() for one in trained for p in one.parameters()),
        param_bytes=sum(
            p.nbytes
            for one in (trained if run.kind == "joint" else trained[:1])
            for p in one.parameters()
            if p.requires_grad
        ),
        base=base,
        saved=saved,
        peak_over_base=tracker.peak - base,
        peak_at=tracker.peak_at,
        phase_peaks=tracker.phase_peaks,
        initial=initial,
        events=list(tracker.events),
    )


def _model(config: dict[str, Any], run: FeedbackRun) -> Any:
    options = as_config(config)
    options.use_cache = False
    options.pad_token_id = 0
    classifies = run.kind in ("reward", "value", "values", "score")
    options.num_labels = 1
    factory = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    dtype = torch.float32 if run.autocast or run.fp32 else torch.bfloat16
    attention = _KERNEL_NAME if run.attention == "flash" else run.attention
    model = factory.from_config(options, attn_implementation=attention, dtype=dtype)
    model.train()
    if run.kind == "shared":
        model.values = torch.nn.Linear(options.hidden_size, 1, bias=False, dtype=dtype)
    if run.lora:
        task = "SEQ_CLS" if classifies else "CAUSAL_LM"
        model = peft.get_peft_model(model, peft.LoraConfig(r=run.lora, task_type=task))
    if run.checkpoint:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if run.lora:
            model.enable_input_require_grads()
    return model


def _inputs(run: FeedbackRun) -> dict[str, Tensor]:
    rows, r = run.rows, run.response
    ids = torch.zeros(rows, run.seq, dtype=torch.long)
    known: dict[str, Tensor] = {"ids": ids}
    token = lambda: torch.zeros(rows, r)  # noqa: E731
    if run.kind == "dpo":
        known["mask"] = torch.zeros(rows, run.seq, dtype=torch.long)
        if run.reference == "none":
            known |= {"ref_chosen": torch.zeros(rows // 2), "ref_rejected": torch.zeros(rows // 2)}
    elif run.kind == "grpo":
        known |= {"old": token(), "mask": torch.zeros(rows, r, dtype=torch.long)}
        known["advantages"] = torch.zeros(rows)
        known["items"] = torch.zeros(())
        if run.beta:
            known["reference"] = token()
    elif run.kind in ("policy", "value", "shared", "joint"):
        known |= {"old": token(), "advantages": token()}
        known["padding"] = torch.zeros(rows, r, dtype=torch.bool)
    return known


def _called(run: FeedbackRun, model: Any, ids: Tensor, **options: Any) -> Any:
    """A model as accelerate prepares it: under autocast, its outputs in fp32."""
    with torch.autocast("cpu", torch.bfloat16) if run.autocast else nullcontext():
        output = model(input_ids=ids, use_cache=False, **options)
    if run.autocast:
        for name, value in list(output.items()):
            if isinstance(value, tuple):
                output[name] = tuple(v.float() if v.dtype == torch.bfloat16 else v for v in value)
            elif value.dtype == torch.bfloat16:
                output[name] = value.float()
        del value
    return output


def logsumexp(x: Tensor) -> Tensor:
    """torch.logsumexp over the last dim, with what its CUDA code allocates inside."""
    with torch.no_grad():
        inside = (x.amax(-1, keepdim=True),)
        inside[0].masked_fill_(inside[0].abs() == float("inf"), 0)
        inside += (x - inside[0],)
    out = torch.logsumexp(x, -1)
    del inside
    return out


class _LogSigmoid(torch.autograd.Function):
    """F.logsigmoid as CUDA runs it: without the buffer that other devices have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.empty_like(ctx.saved_tensors[0])


log_sigmoid: Callable[[Tensor], Tensor] = _LogSigmoid.apply


def selective_log_softmax(logits: Tensor, index: Tensor) -> Tensor:
    index = index.unsqueeze(-1)
    if logits.dtype == torch.float32:
        selected = torch.gather(logits, dim=-1, index=index)
        sums = torch.stack([logsumexp(row) for row in logits])
        out = selected - sums.unsqueeze(-1)
    else:
        kept = []
        for row, labels in zip(logits, index, strict=True):
            row_logps = F.log_softmax(row, dim=-1)
            row_per_token = row_logps.gather(dim=-1, index=labels)
            kept.append(row_per_token)
        out = torch.stack(kept)
    return out.squeeze(-1)


def entropy_from_logits(logits: Tensor) -> Tensor:
    flat = logits.reshape(-1, logits.shape[-1])
    entropies = []
    for chunk in flat.split(CHUNK, dim=0):
        logps = F.log_softmax(chunk, dim=-1)
        chunk_entropy = -(torch.exp(logps) * logps).sum(-1)
        entropies.append(chunk_entropy)
    whole = torch.cat(entropies, dim=0)
    return whole.reshape(logits.shape[:-1])


def _selected(x: Tensor, mask: Tensor, count: int) -> Tensor:
    """x[mask.bool()] where `count` entries are set: the mask's cast, its places, what is taken."""
    taken = mask.bool()
    places = torch.empty(count, mask.ndim, dtype=torch.long, device=x.device)
    out = torch.empty(count, *x.shape[mask.ndim :], dtype=x.dtype, device=x.device)
    del places, taken
    return out


def _dpo(
    run: FeedbackRun, model: Any, frozen: Any, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    ids, mask = inputs["ids"], inputs["mask"]
    outputs = _called(run, model, ids)
    enter_loss()
    shift_logits = outputs.logits[..., :-1, :].contiguous()
    shift_labels = ids[..., 1:].contiguous()
    shift_mask = mask[..., 1:].contiguous()
    logps = selective_log_softmax(shift_logits, shift_labels)
    logps[shift_mask == 0] = 0.0
    summed = logps.sum(dim=1)
    chosen, rejected = summed.chunk(2, dim=0)
    if run.reference == "none":
        ref_chosen, ref_rejected = inputs["ref_chosen"], inputs["ref_rejected"]
    else:
        with torch.no_grad():
            if run.reference == "adapter":
                with model.disable_adapter(), _unchecked(model, run):
                    ref_outputs = _called(run, model, ids)
            else:
                with _unchecked(frozen, run):
                    ref_outputs = _called(run, frozen, ids)
        ref_shift = ref_outputs.logits[..., :-1, :].contiguous()
        ref_logps = selective_log_softmax(ref_shift, shift_labels)
        ref_logps[shift_mask == 0] = 0.0
        ref_summed = ref_logps.sum(dim=1)
        ref_chosen, ref_rejected = ref_summed.chunk(2, dim=0)
    chosen_ratios = chosen - ref_chosen
    rejected_ratios = rejected - ref_rejected
    delta = chosen_ratios - rejected_ratios
    loss = 0.0 + (-log_sigmoid(0.1 * delta)).mean() * 1.0
    _metrics(run, shift_logits, shift_mask, shift_labels)
    return loss


def _unchecked(model: Any, run: FeedbackRun) -> Any:
    """TRL's disable_gradient_checkpointing."""
    if not run.checkpoint:
        return nullcontext()
    stack = ExitStack()
    model.gradient_checkpointing_disable()
    stack.callback(model.gradient_checkpointing_enable, {"use_reentrant": False})
    return stack


def _metrics(run: FeedbackRun, logits: Tensor, mask: Tensor, labels: Tensor) -> None:
    """What TRL logs of the policy's logits; numbers read back are left out."""
    pairs, r = run.rows // 2, run.response
    entropies = entropy_from_logits(logits.detach())
    entropy = _selected(entropies, mask, run.rows * r).mean()
    del entropy
    chosen, rejected = logits.detach().chunk(2, dim=0)
    chosen_mask, rejected_mask = mask.chunk(2, dim=0)
    total = _selected(chosen, chosen_mask, pairs * r).mean(-1).sum()
    other = _selected(rejected, rejected_mask, pairs * r).mean(-1).sum()
    del total, other
    predictions = chosen.argmax(dim=-1)
    del predictions


def _reward(
    run: FeedbackRun, model: Any, frozen: Any, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    outputs = _called(run, model, inputs["ids"])
    enter_loss()
    chosen, rejected = torch.chunk(outputs.logits.squeeze(-1), chunks=2)
    return -log_sigmoid(chosen - rejected).mean()


def _grpo(
    run: FeedbackRun, model: Any, frozen: Any, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    r, mask, ids = run.response, inputs["mask"], inputs["ids"]
    per_token, entropies = _logps_and_entropies(run, model, ids, r)
    advantages = inputs["advantages"].unsqueeze(1)
    log_ratio = per_token - inputs["old"]
    coef_1 = torch.exp(log_ratio)
    if run.beta:
        reference = inputs["reference"]
        kl = torch.exp(reference - per_token) - (reference - per_token) - 1
    coef_2 = torch.clamp(coef_1, 0.8, 1.2)
    loss1 = coef_1 * advantages
    loss2 = coef_2 * advantages
    each = -torch.min(loss1, loss2)
    if run.beta:
        each = each + 0.04 * kl
    return (each * mask).sum() / (inputs["items"] / 1)


def _logps_and_entropies(
    run: FeedbackRun, model: Any, ids: Tensor, r: int
) -> tuple[Tensor, Tensor]:
    logits = _called(run, model, ids, logits_to_keep=r + 1).logits
    enter_loss()
    logits = logits[:, :-1, :]
    logits = logits[:, -r:, :]
    logits.div_(0.9)
    logps = selective_log_softmax(logits, ids[:, -r:])
    with torch.no_grad():
        entropies = entropy_from_logits(logits)
    return torch.cat([logps], dim=0), torch.cat([entropies], dim=0)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum()


def _policy(
    run: FeedbackRun, model: Any, frozen: Any, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    output = _called(run, model, inputs["ids"], output_hidden_states=True, return_dict=True)
    enter_loss()
    alive.append(output)
    return _clipped_policy_loss(run, output.logits, inputs, alive)


def _clipped_policy_loss(
    run: FeedbackRun, logits: Tensor, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    ids, r = inputs["ids"], run.response
    logits = logits[:, run.seq - r - 1 : -1]
    logits /= 0.7
    new = selective_log_softmax(logits, ids[:, -r:])
    new = torch.masked_fill(new, inputs["padding"], 1.0)
    diff = new - inputs["old"]
    ratio = torch.exp(diff)
    losses = -inputs["advantages"] * ratio
    losses2 = -inputs["advantages"] * torch.clamp(ratio, 0.8, 1.2)
    most = torch.max(losses, losses2)
    loss = _masked_mean(most, ~inputs["padding"])
    alive += [logits, new, diff, ratio, losses, losses2, most]
    return loss


def _shared(
    run: FeedbackRun, model: Any, frozen: Any, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    """Policy and values of one trunk; the loss of both together."""
    with torch.autocast("cpu", torch.bfloat16) if run.autocast else nullcontext():
        hidden = model.model(input_ids=inputs["ids"], use_cache=False)[0]
        predicted = model.values(hidden)
        logits = model.lm_head(hidden)
        del hidden
    if run.autocast:
        logits, predicted = logits.float(), predicted.float()
    enter_loss()
    of_values = _clipped_value_loss(run, predicted, inputs, alive)
    of_policy = _clipped_policy_loss(run, logits, inputs, alive)
    loss = of_policy + 0.1 * of_values
    alive += [logits, predicted, of_values, of_policy]
    return loss


def _joint(
    run: FeedbackRun, model: Any, frozen: Any, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    """TRL's wrapper of policy and critic (frozen here is the critic): one forward, one backward."""
    ids, options = inputs["ids"], {"output_hidden_states": True, "return_dict": True}
    with torch.autocast("cpu", torch.bfloat16) if run.autocast else nullcontext():
        backbone = frozen.model(input_ids=ids, **options)
        predicted = frozen.score(backbone.hidden_states[-1])
        output = model(input_ids=ids, use_cache=False, **options)
        del backbone
    if run.autocast:
        output["logits"] = output.logits.float()
        output["hidden_states"] = tuple(
            v.float() if v.dtype == torch.bfloat16 else v for v in output.hidden_states
        )
        predicted = predicted.float()
    enter_loss()
    of_policy = _clipped_policy_loss(run, output.logits, inputs, alive)
    of_values = _clipped_value_loss(run, predicted, inputs, alive)
    loss = of_policy + 0.1 * of_values
    alive += [output, predicted, of_values, of_policy]
    return loss


def _value(
    run: FeedbackRun, model: Any, frozen: Any, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    """The critic's part of PPO's loss: its backbone, the head on its last hidden states."""
    predicted = _values(run, model, frozen, inputs, alive)
    enter_loss()
    alive.append(predicted)
    return _clipped_value_loss(run, predicted, inputs, alive)


def _values(
    run: FeedbackRun, model: Any, frozen: Any, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    whole = model.base_model.model if run.lora else model
    with torch.autocast("cpu", torch.bfloat16) if run.autocast else nullcontext():
        output = whole.model(input_ids=inputs["ids"], output_hidden_states=True, return_dict=True)
        predicted = whole.score(output.hidden_states[-1])
    del output
    return predicted.float() if run.autocast else predicted


def _clipped_value_loss(
    run: FeedbackRun, predicted: Tensor, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    r = run.response
    values = predicted[:, run.seq - r - 1 : -1].squeeze(-1)
    values = torch.masked_fill(values, inputs["padding"], 0)
    clipped = torch.clamp(values, inputs["old"] - 0.2, inputs["old"] + 0.2)
    losses1 = torch.square(values - inputs["advantages"])
    losses2 = torch.square(clipped - inputs["advantages"])
    most = torch.max(losses1, losses2)
    loss = 0.5 * _masked_mean(most, ~inputs["padding"])
    alive += [values, clipped, losses1, losses2, most]
    return loss


def _score_logps(
    run: FeedbackRun, model: Any, frozen: Any, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    ids, r = inputs["ids"], run.response
    if run.keeps_hidden:
        output = _called(run, model, ids, output_hidden_states=True, return_dict=True)
        logits = output.logits[:, run.seq - r - 1 : -1]
        logits /= 0.7
        return selective_log_softmax(logits, ids[:, -r:])
    logits = _called(run, model, ids, logits_to_keep=r + 1).logits
    logits = logits[:, :-1, :]
    logits = logits[:, -r:, :]
    logits.div_(0.9)
    return selective_log_softmax(logits, ids[:, -r:])


def _score(
    run: FeedbackRun, model: Any, frozen: Any, inputs: dict[str, Tensor], alive: list[Any]
) -> Tensor:
    if run.keeps_hidden:
        return _values(run, model, frozen, inputs, alive)
    return _called(run, model, inputs["ids"]).logits


_SCORES = ("logps", "values", "score")
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "dpo": _dpo, "reward": _reward, "grpo": _grpo, "policy": _policy, "value": _value,
    "shared": _shared, "joint": _joint, "logps": _score_logps, "values": _values, "score": _score,
}  # fmt: skip


def amounts(record: HfRecord) -> list[int]:
    """Bytes of each allocation, negative of each release, of what was made inside."""
    before = {alloc.storage for alloc in record.initial}
    return [
        event.nbytes if isinstance(event, Alloc) else -event.nbytes
        for event in record.events
        if event.storage not in before
    ]

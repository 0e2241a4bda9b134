"""The engine asked of an encoder as a user asks it; drawn configurations; a whole step by transformers."""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import Any

import torch

from memcalc.engine.build import Build
from memcalc.engine.make_plan import plan_of
from memcalc.engine.memory import step_memory
from memcalc.engine.plan import Plan
from memcalc.engine.tensors import Tape
from memcalc.engine.trace import micro_batch
from memcalc.harness.watch.tracker import StorageTracker
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.engine import EngineRecord, _record
from tests.oracle.support.hf import _one_byte_dropout_masks
from tests.oracle.support.hf_encoders import DTYPES, build, inputs_of
from tests.oracle.support.step import _without_data

Shape = tuple[int, int, int]
T5: dict[str, Any] = {
    "model_type": "t5", "vocab_size": 1000, "d_model": 96, "d_kv": 32, "d_ff": 320,
    "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0,
}  # fmt: skip
BERT: dict[str, Any] = {
    "model_type": "bert", "vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 320, "max_position_embeddings": 256,
}  # fmt: skip


def drawn_t5(rng: random.Random) -> dict[str, Any]:
    """T5 1.0 or 1.1, or mT5: halves of different depth, heads apart from the width.

    No single head: its bias has strides of 1, which sdpa pads whatever the length. No single decoder
    block: with a batch of one the gradient of its zero bias is copied, which changes no peak.
    """
    gated = rng.random() < 0.6
    return {
        "model_type": rng.choice(["t5", "t5", "mt5"]),
        "vocab_size": rng.choice([101, 1000, 8000]),
        "d_model": rng.choice([32, 64, 96, 200]),
        "d_kv": rng.choice([8, 32, 64]),
        "d_ff": rng.choice([48, 320, 640]),
        "num_layers": rng.randint(1, 5),
        "num_decoder_layers": rng.randint(2, 5),
        "num_heads": rng.choice([2, 4, 6]),
        "relative_attention_num_buckets": rng.choice([8, 32]),
        "feed_forward_proj": rng.choice(["gated-gelu", "gated-silu"])
        if gated
        else rng.choice(["relu", "gelu"]),
        "dropout_rate": rng.choice([0.0, 0.1]),
        "tie_word_embeddings": rng.random() < 0.5,
        "decoder_start_token_id": 0,
    }


def drawn_bert(rng: random.Random) -> dict[str, Any]:
    """BERT of any size, with dropout or without."""
    heads = rng.choice([1, 2, 4, 6])
    return {
        "model_type": "bert",
        "vocab_size": rng.choice([101, 1000, 8000]),
        "hidden_size": heads * rng.choice([8, 32, 64]),
        "num_hidden_layers": rng.randint(1, 6),
        "num_attention_heads": heads,
        "intermediate_size": rng.choice([48, 320, 640]),
        "max_position_embeddings": 256,
        "type_vocab_size": rng.choice([1, 2]),
        "hidden_act": rng.choice(["gelu", "gelu_new", "relu"]),
        "hidden_dropout_prob": rng.choice([0.0, 0.1]),
        "attention_probs_dropout_prob": rng.choice([0.0, 0.1]),
    }


def drawn_shape(rng: random.Random) -> Shape:
    """(batch, source, target) tokens; a batch of one, odd lengths and multiples of 16 occur."""
    lengths = [7, 16, 41, 50, 64, 96]
    return rng.choice([1, 2, 3]), rng.choice(lengths), rng.choice(lengths)


def encoder_plan(
    config: dict[str, Any],
    shape: Shape,
    checkpoint: bool = False,
    attention: str = "efficient",
    precision: str = "bf16",
    impl: str = "foreach",
) -> Plan:
    """The plan of a setup on stack hf, as a dispatch mode sees it."""
    batch, source, target = shape
    setup = TrainingSetup(
        seq_len=source,
        target_seq_len=target if config["model_type"] != "bert" else None,
        micro_batch_size=batch,
        precision=precision,
        recompute="full" if checkpoint else "none",
        attention=attention,
        stack="hf",
        optimizer_impl=impl,
    )
    return plan_of(model_from_config(config, "m"), setup, {"watched": True})


def traced(plan: Plan) -> EngineRecord:
    """One micro-batch of a plan with every block written out."""
    tape = Tape(watched=True)
    build_ = Build(tape, plan.config, plan.kernels, plan.dims)
    micro_batch(build_, list(plan.kinds), False)
    return _record(tape, plan.values)


def phases_of(plan: Plan) -> dict[str, int]:
    """Peaks of a step's phases as the estimate has them; the loss belongs to the forward pass."""
    phases = step_memory(plan).phases
    return {
        "forward": max(phases["forward"], phases["loss"]),
        "backward": phases["backward"],
        "optimizer": phases["optimizer"],
    }


def run_step(plan: Plan, config: dict[str, Any], shape: Shape) -> dict[str, int]:
    """The same of a second AdamW step of transformers' model, buffers of the model left out."""
    with ExitStack() as stack:
        stack.enter_context(_one_byte_dropout_masks())
        with torch.device("meta"):
            model = build(config, plan.kernels.attention, DTYPES[plan.kernels.param_dtype])
            inputs = inputs_of(config, shape, own_labels=True)
        if plan.kinds[0].recompute == "full":
            model.activation_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.AdamW(model.parameters(), foreach=plan.optimizer.impl == "foreach")
        stack.enter_context(_without_data("meta"))
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        tracker = StorageTracker("meta")
        states = [t for held in optimizer.state.values() for t in held.values()]
        tracker.track(model, *inputs.values(), *states)
        buffers = {
            b.untyped_storage()._cdata: b.untyped_storage().nbytes() for b in model.buffers()
        }
        with tracker:
            loss = model(**inputs).loss
            tracker.set_phase("backward")
            loss.backward()
            del loss
            tracker.set_phase("optimizer")
            optimizer.step()
    peaks = {name: peak.nbytes for name, peak in tracker.phase_peaks.items()}
    return {name: nbytes - sum(buffers.values()) for name, nbytes in peaks.items()}

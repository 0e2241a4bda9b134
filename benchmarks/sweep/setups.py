"""The memory sweep's setups: at least 120 varied training steps, the same ones every time.

Each model of MODELS appears once a round; options cycle through lists whose lengths differ, so that
values meet in ever new combinations, and `_possible` puts right what cannot run. A setup's key is a
hash of what is stated, so a later call skips what an earlier one measured.
Sizes keep every step below the 80 GB of the smaller card it is meant for, as the estimate says.
Checked by: tests/harness/test_gpu_sweep.py.
"""

from __future__ import annotations

import hashlib
import json
from itertools import cycle, islice
from typing import Any, NamedTuple

from benchmarks.sweep.tuned_setups import tuned
from memcalc.engine.make_plan import plan_of
from memcalc.engine.plan import Plan
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.models import load_model
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.training import TrainingSetup

#: Decoders without a profile, as keys of a config.json.
_LLAMA = {"model_type": "llama", "max_position_embeddings": 131072, "tie_word_embeddings": False}
CUSTOM: dict[str, dict[str, Any]] = {
    "llama-125m": {
        **_LLAMA, "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048,
        "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12,
    },
    "llama-1.3b": {
        **_LLAMA, "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5504,
        "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
    },
    "tiny-llama": {
        **_LLAMA, "vocab_size": 256, "hidden_size": 64, "intermediate_size": 160,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "tiny-qwen2": {
        **_LLAMA, "model_type": "qwen2", "vocab_size": 256, "hidden_size": 64,
        "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}  # fmt: skip


class Shape(NamedTuple):
    """A model, how many of its layers, and (sequence, micro-batch) pairs, one a round."""

    model: str
    layers: tuple[int | None, ...]
    sizes: tuple[tuple[int, int], ...]


#: 125M to slices of 8B and 70B; sequences of 512 to 32k.
MODELS = (
    Shape("llama-125m", (None,), ((512, 8), (2048, 4), (8192, 1), (32768, 1))),
    Shape("gpt2", (None,), ((512, 4), (1024, 8), (1024, 1), (768, 12))),
    Shape("smollm2-135m", (None, 12), ((2048, 2), (512, 16), (4096, 2), (1024, 5))),
    Shape("qwen2.5-0.5b", (12, None), ((1024, 2), (4096, 1), (2048, 3), (16384, 1))),
    Shape("llama-3.1-8b", (2, 4, 3, 6), ((2048, 1), (8192, 1), (4096, 2), (16384, 1))),
    Shape("pythia-410m", (None, 12), ((2048, 2), (512, 12), (1024, 3), (2048, 1))),
    Shape("opt-350m", (None, 8), ((1024, 4), (2048, 2), (512, 3), (1536, 2))),
    Shape("qwen3-0.6b", (None, 10), ((2048, 2), (1024, 7), (8192, 1), (4096, 1))),
    Shape("mixtral-8x7b", (1,), ((1024, 1), (2048, 1), (4096, 1), (512, 4))),
    Shape("gemma-3-1b", (8, None), ((1024, 2), (2048, 1), (4096, 1), (512, 5))),
    Shape("llama-3.2-1b", (None, 8), ((2048, 2), (4096, 1), (1024, 6), (8192, 1))),
    Shape("deepseek-v2-lite", (2, 3), ((1024, 2), (2048, 2), (4096, 1), (512, 3))),
    Shape("gpt2-large", (12, 24), ((1024, 2), (512, 8), (1024, 4), (896, 3))),
    Shape("qwen2.5-1.5b", (10, 20), ((2048, 1), (1024, 4), (8192, 1), (4096, 2))),
    Shape("mistral-7b-v0.3", (2, 4), ((4096, 1), (2048, 2), (1024, 4), (8192, 1))),
    Shape("olmo-2-1b", (6, None), ((2048, 1), (1024, 5), (4096, 1), (512, 8))),
    Shape("qwen3-8b", (2, 3), ((2048, 2), (4096, 1), (1024, 3), (12288, 1))),
    Shape("llama-3.1-70b", (1, 2), ((1024, 1), (2048, 1), (4096, 1), (2048, 2))),
    Shape("phi-3-mini", (4, 8), ((2048, 2), (1024, 6), (4096, 1), (8192, 1))),
    Shape("qwen1.5-moe-a2.7b", (1, 2), ((2048, 1), (1024, 3), (512, 6), (4096, 1))),
    Shape("bloom-560m", (6, 12), ((1024, 2), (2048, 1), (512, 4), (1024, 4))),
    Shape("llama-1.3b", (8, None), ((2048, 2), (2048, 4), (4096, 2), (16384, 1))),
    Shape("gemma-2-2b", (4, 6), ((1024, 1), (512, 4), (2048, 1), (1536, 1))),
    Shape("falcon-7b", (2, 3), ((2048, 1), (1024, 3), (512, 8), (2048, 2))),
    Shape("gpt2-xl", (8, 16), ((1024, 1), (1024, 3), (512, 4), (640, 5))),
    Shape("qwen3-30b-a3b", (1,), ((1024, 1), (2048, 1), (512, 2), (4096, 1))),
    Shape("smollm2-1.7b", (6, 12), ((2048, 1), (4096, 1), (1024, 6), (8192, 1))),
    Shape("qwen2.5-7b", (2, 3), ((2048, 1), (1024, 4), (4096, 1), (32768, 1))),
    Shape("deepseek-v3", (1,), ((512, 1), (1024, 1), (2048, 1), (4096, 1))),
    Shape("llama-2-7b", (3, 6), ((4096, 1), (1024, 4), (2048, 3), (4096, 2))),
    Shape("smollm2-360m", (None, 16), ((2048, 3), (1024, 9), (512, 2), (8192, 1))),
    Shape("gpt-oss-20b", (1,), ((512, 1), (1024, 1), (2048, 1), (1024, 2))),
)  # fmt: skip
ROUNDS = 4
#: Models whose blocks are compiled in a fifth, short round, in the two 16-bit precisions.
COMPILED = ("llama-125m", "gpt2", "llama-3.2-1b", "qwen3-0.6b", "llama-3.1-8b", "qwen2.5-1.5b")

_PRECISIONS = (
    "bf16-mixed", "bf16", "bf16-mixed", "bf16-master", "bf16", "fp32", "bf16-mixed", "bf16",
    "fp16-mixed", "bf16", "bf16-mixed", "fp8-mixed", "bf16-master", "tf32", "bf16-mixed",
)  # fmt: skip
_RECOMPUTES = ("none", "full", "sac", "none", "sac-attention", "full:half", "selective", "none",
               "full", "sac", "reentrant", "none", "sac-attention")  # fmt: skip
_LOSSES = ("fp32", "plain", "chunked", "fp32", "fused", "plain", "chunked")
_ATTENTIONS = ("flash", "cudnn", "flash", "efficient", "eager", "flash", "cudnn", "efficient",
               "flash", "eager", "flash")  # fmt: skip
_OPTIMIZERS = (
    ("adamw", "foreach"), ("adamw", "fused"), ("adamw", "foreach"), ("sgd", "foreach"),
    ("adamw", "loop"), ("momentum", "foreach"), ("adamw", "fused"), ("adafactor", "foreach"),
    ("adamw", "foreach"), ("muon", "foreach"), ("adamw", "fused"), ("none", None),
    ("adamw", "foreach"), ("momentum", "fused"), ("adafactor", "loop"), ("sgd", "loop"),
    ("adamw", "loop"),
)  # fmt: skip
_ACCUMULATIONS = (1, 2, 1, 1, 3)
_SWITCHES: tuple[dict[str, Any], ...] = (
    {}, {"grad_clip": True}, {}, {"set_to_none": False}, {"dropout": 0.1}, {},
    {"grad_clip": True, "set_to_none": False}, {"separate_labels": True}, {},
)  # fmt: skip
_NORMS: tuple[dict[str, str], ...] = ({}, {"norm": "hand"}, {}, {}, {})
#: Scores in full are four bytes and more a head and pair of positions: eager stays short.
_EAGER_SEQ = 2048


class Spec(NamedTuple):
    """One setup of the sweep. training: keywords of TrainingSetup; kernels: overrides of the stack."""

    model: str
    training: dict[str, Any]
    kernels: dict[str, str]
    expects_oom: bool = False

    @property
    def key(self) -> str:
        """The setup's hash: 16 hex digits of what is stated."""
        stated = [self.model, CUSTOM.get(self.model), self.training, self.kernels]
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def compiled(self) -> bool:
        """Whether the blocks run through torch.compile."""
        return bool(self.training.get("stack") == "torch-compile")

    @property
    def group(self) -> tuple[str, bool]:
        """(precision, compiled): setups of one group share a process."""
        return self.training["precision"], self.compiled

    @property
    def config(self) -> ModelConfig:
        """The model."""
        return model_of(self.model)

    @property
    def setup(self) -> TrainingSetup:
        """The training setup. Raises ConfigError for what this version cannot state."""
        stated = dict(self.training)
        if (peft := stated.get("peft")) is not None:
            stated["peft"] = PeftSetup(**{**peft, "targets": tuple(peft.get("targets", ()))})
        return TrainingSetup(**stated)

    def plan(self, kernels: dict[str, str] | None = None) -> Plan:
        """The engine's plan. Raises ConfigError for what this version cannot state."""
        return plan_of(self.config, self.setup, {**self.kernels, **(kernels or {})})

    def label(self) -> str:
        """A line a reader knows the setup by."""
        said = self.training
        layers = "" if said.get("num_layers") is None else f"/{said['num_layers']}"
        rest = [str(said[name]) for name in ("precision", "recompute", "attention", "loss")]
        rest += [f"{said['optimizer']}-{said.get('optimizer_impl') or ''}".strip("-")]
        if said.get("peft"):
            rest.append(said["peft"]["method"])
        return f"{self.model}{layers} {said['micro_batch_size']}x{said['seq_len']} {' '.join(rest)}"


def model_of(name: str) -> ModelConfig:
    """A profile's model, or one of CUSTOM."""
    return model_from_config(CUSTOM[name], name) if name in CUSTOM else load_model(name)


def memory_setups() -> list[Spec]:
    """All setups: the rounds, compiled ones, fine-tuning, and two that must run out of memory."""
    options = zip(
        cycle(_PRECISIONS), cycle(_RECOMPUTES), cycle(_LOSSES), cycle(_ATTENTIONS),
        cycle(_OPTIMIZERS), cycle(_ACCUMULATIONS), cycle(_SWITCHES), cycle(_NORMS), strict=False,
    )  # fmt: skip
    shapes = [(shape, number) for number in range(ROUNDS) for shape in MODELS]
    drawn = zip(shapes, islice(options, len(shapes)), strict=True)
    rounds = [_spec(shape, number, chosen) for (shape, number), chosen in drawn]
    fine = [Spec(model, training, {}) for model, training in tuned()]
    return [*rounds, *_compiled(), *fine, *_too_large()]


def _spec(shape: Shape, number: int, chosen: tuple[Any, ...]) -> Spec:
    precision, recompute, loss, attention, (optimizer, impl), accum, switches, norm = chosen
    seq, micro = shape.sizes[number % len(shape.sizes)]
    layers = shape.layers[number % len(shape.layers)]
    training: dict[str, Any] = {
        "seq_len": seq, "micro_batch_size": micro, "grad_accum_steps": accum,
        "precision": precision, "optimizer": optimizer, "optimizer_impl": impl,
        "recompute": recompute, "attention": attention, "loss": loss, "num_layers": layers,
        **switches,
    }  # fmt: skip
    return _possible(Spec(shape.model, training, dict(norm)))


def _possible(spec: Spec) -> Spec:
    """The setup with what cannot run, or would not fit 80 GB, put right."""
    config, training = spec.config, dict(spec.training)
    layers = training["num_layers"] or config.num_hidden_layers
    if training["recompute"] == "full:half":
        training |= {"recompute": "full", "recompute_layers": max(1, layers // 2)}
    elif training["recompute"] == "reentrant":
        training |= {"recompute": "full", "reentrant": True}
    if training["attention"] == "eager" and training["seq_len"] > _EAGER_SEQ:
        training["attention"] = "flash"
    if config.moe is not None and training["precision"] == "fp8-mixed":
        training["precision"] = "bf16-mixed"  # tokens of an expert are no multiple of 16
    if training["optimizer"] == "muon" and training["precision"] == "bf16-master":
        training["precision"] = "bf16"
    wide = config.hidden_size >= 4096 or config.moe is not None
    if wide and training["precision"] in ("fp32", "tf32", "fp16-mixed"):
        training["precision"] = "bf16"
    if training.get("dropout") and config.norm_type != "layernorm":
        training["dropout"] = None
    kernels = spec.kernels if config.norm_type == "rmsnorm" else {}
    return Spec(spec.model, training, kernels)


def _compiled() -> list[Spec]:
    found = []
    for number, model in enumerate(COMPILED):
        shape = next(shape for shape in MODELS if shape.model == model)
        for precision in ("bf16-mixed", "bf16"):
            seq, micro = shape.sizes[number % 2]
            training = {
                "seq_len": seq, "micro_batch_size": micro, "grad_accum_steps": 1,
                "precision": precision, "optimizer": "adamw", "optimizer_impl": "fused",
                "recompute": "full" if number == 2 else "none", "attention": "flash",
                "loss": "fp32", "num_layers": min(4, shape.layers[0] or 4),
                "stack": "torch-compile",
            }  # fmt: skip
            found.append(Spec(model, training, {}))
    return found


def _too_large() -> list[Spec]:
    """Two steps no single card holds: one fails while the model is made, one in the step."""
    base = {
        "grad_accum_steps": 1, "precision": "bf16", "optimizer": "adamw",
        "optimizer_impl": "foreach", "recompute": "none", "attention": "flash", "loss": "fp32",
    }  # fmt: skip
    states = {**base, "seq_len": 512, "micro_batch_size": 1, "num_layers": 60}
    batch = {**base, "seq_len": 32768, "micro_batch_size": 8, "num_layers": 8}
    return [Spec("llama-3.1-70b", states, {}, True), Spec("llama-3.1-8b", batch, {}, True)]


def tiny_setups() -> list[Spec]:
    """A handful for a CPU: two precisions, two families, a control, one plan that is refused."""
    base = {
        "seq_len": 32, "micro_batch_size": 2, "grad_accum_steps": 1, "optimizer": "adamw",
        "optimizer_impl": "foreach", "attention": "flash", "loss": "fp32", "num_layers": 2,
    }  # fmt: skip
    return [
        Spec("tiny-llama", {**base, "precision": "fp32", "recompute": "none"}, {}),
        Spec("tiny-llama", {**base, "precision": "fp32", "recompute": "full"}, {}),
        Spec("tiny-qwen2", {**base, "precision": "fp32", "recompute": "none", "loss": "plain"}, {}),
        Spec("tiny-llama", {**base, "precision": "bf16", "recompute": "none"}, {}),
        Spec(
            "tiny-llama",
            {
                **base,
                "precision": "bf16",
                "recompute": "full",
                "peft": {"method": "qlora", "targets": ["all-linear"]},
            },
            {},
        ),
    ]

"""The decoder against transformers: logits and every gradient with the same weights, in fp32.

Largest difference over largest value, tensor by tensor, at most 1e-5.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcalc.engine.make_plan import plan_of
from memcalc.harness.model.decoder import Decoder, build
from memcalc.harness.model.norms import Norm
from memcalc.inputs.hf import model_from_config
from memcalc.inputs.training import TrainingSetup
from tests.oracle.support.tiny import TINY

BATCH, SEQ = 2, 48
TOLERANCE = 1e-5
FAMILIES = ("llama", "qwen2", "qwen3", "gpt2", "mixtral")


def _transformers(config: dict[str, Any]) -> nn.Module:
    import transformers

    settings = transformers.AutoConfig.for_model(**config, attn_implementation="eager")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    for parameter in model.parameters():  # biases and norms drawn too, so that each of them counts
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.05)
    return model.float()


def _ours(config: dict[str, Any], theirs: nn.Module, **setup: Any) -> Decoder:
    model = model_from_config(config, config["model_type"])
    options = {"precision": "fp32", "seq_len": SEQ, "micro_batch_size": BATCH, "dropout": 0.0}
    plan = plan_of(model, TrainingSetup(**options | setup), {"norm": "hand", "device": "cpu"})
    decoder = build(plan, "cpu")
    settings: Any = theirs.config
    rope = getattr(settings, "rope_parameters", None) or {}
    decoder.rope_theta = rope.get("rope_theta", decoder.rope_theta)
    for module in decoder.modules():
        if isinstance(module, Norm):
            names = ("rms_norm_eps", "layer_norm_epsilon")
            module.eps = next(getattr(settings, n) for n in names if hasattr(settings, n))
    return decoder


_RENAMED = (
    (r"^model\.embed_tokens|^transformer\.wte", "embedding"),
    (r"^transformer\.wpe", "position_embedding"),
    (r"^model\.norm|^transformer\.ln_f", "final_norm"),
    (r"^(model\.layers|transformer\.h)", "layers"),
    (r"input_layernorm|ln_1", "attn_norm"),
    (r"post_attention_layernorm|ln_2", "mlp_norm"),
    (r"self_attn", "attn"),
    (r"attn\.c_attn", "attn.qkv_proj"),
    (r"attn\.c_proj", "attn.o_proj"),
    (r"mlp\.c_fc", "mlp.up_proj"),
    (r"mlp\.c_proj", "mlp.down_proj"),
    (r"block_sparse_moe", "mlp"),
    (r"mlp\.gate\.", "mlp.router."),
    (r"mlp\.experts\.gate_up_proj", "mlp.expert_gate_up.weight"),
    (r"mlp\.experts\.down_proj", "mlp.expert_down.weight"),
)


def _name(theirs: str) -> str:
    for pattern, ours in _RENAMED:
        theirs = re.sub(pattern, ours, theirs)
    return theirs


def _as_ours(name: str, tensor: Tensor) -> Tensor:
    """GPT-2's Conv1D keeps its weights transposed."""
    conv = re.search(r"(c_attn|c_proj|c_fc)\.weight", name)
    return tensor.t() if conv else tensor


def _pair(family: str, **setup: Any) -> tuple[nn.Module, Decoder, dict[str, str]]:
    config = {**TINY[family], "tie_word_embeddings": False}
    if family == "gpt2":
        config |= {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    theirs = _transformers(config)
    ours = _ours(config, theirs, **setup)
    mine = dict(ours.named_parameters())
    names = {name: _name(name) for name, _ in theirs.named_parameters()}
    assert set(names.values()) == set(mine)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            mine[names[name]].copy_(_as_ours(name, parameter))
    return theirs, ours, names


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def _batch(vocabulary: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocabulary, (BATCH, SEQ), generator=generator)
    return ids, torch.randint(vocabulary, (BATCH, SEQ), generator=generator)


@pytest.mark.parametrize("attention", ["eager", "flash"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients(family: str, attention: str) -> None:
    theirs, ours, names = _pair(family, attention=attention)
    ids, labels = _batch(ours.config.vocab_size)
    logits = theirs(ids).logits
    assert _difference(ours.logits(ids), logits) < TOLERANCE
    F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    ours(ids, labels).backward()
    mine = dict(ours.named_parameters())
    checked = 0
    for name, parameter in theirs.named_parameters():
        gradient = mine[names[name]].grad
        assert gradient is not None and parameter.grad is not None
        assert _difference(gradient, _as_ours(name, parameter.grad)) < TOLERANCE, name
        checked += 1
    assert checked == len(mine)

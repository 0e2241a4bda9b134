"""LoRA beside packed weights: PEFT over bitsandbytes' own linears, every event of a micro-batch.

Without autocast: tensors without data that bitsandbytes runs on ignore it. Of LLM.int8 flags of one byte
are left out, and what its outlier columns take, which are the data's.
"""

from __future__ import annotations

from typing import Any

import peft
import pytest

pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is not installed; pip install memcalc[test]"
)

from memcalc.inputs.peft import PeftSetup  # noqa: E402
from tests.oracle.support.peft_compare import differences, step_differences  # noqa: E402
from tests.oracle.support.peft_models import PeftRun  # noqa: E402
from tests.oracle.support.tiny import TINY, attention_of  # noqa: E402
from tests.oracle.test_peft import ALL, lora_run  # noqa: E402

WIDE = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 512}


@pytest.mark.parametrize("checkpoint", ["none", "full", "reentrant"])
@pytest.mark.parametrize("fmt", ["nf4", "nf4-plain", "int8"])
def test_every_event_on_llama(fmt: str, checkpoint: str) -> None:
    for targets, dtype in (((), None), (ALL, None), (ALL, "bf16")):
        setup = PeftSetup(weights=fmt, rank=4, dropout=0.1, targets=targets, dtype=dtype)
        run = lora_run(setup, packed=fmt, checkpoint=checkpoint, seq=96)
        assert not differences({**TINY["llama"], **WIDE}, run, setup)


@pytest.mark.parametrize("family", ["qwen2", "mistral", "qwen3"])
def test_other_families(family: str) -> None:
    setup = PeftSetup(method="qlora", rank=8, targets=ALL)
    run = lora_run(setup, packed="nf4", checkpoint="full", seq=160)
    assert not differences({**TINY[family], **WIDE}, run, setup)


@pytest.mark.parametrize("checkpoint", ["none", "full"])
def test_whole_steps(checkpoint: str) -> None:
    setup = PeftSetup(method="qlora", rank=16, targets=ALL, dropout=0.05)
    run = lora_run(setup, packed="nf4", checkpoint=checkpoint, steps=2, seq=160)
    assert not step_differences({**TINY["llama"], **WIDE}, run, setup)


#: Families with linears of their own kinds, and two with experts, which stay in 16 bits.
OTHERS = ("gpt2", "opt", "falcon", "bloom", "gpt_neox", "gptj", "phi3", "olmo2", "gemma2")
EXPERTS = ("mixtral", "qwen3_moe")


def wide(family: str) -> dict[str, Any]:
    """The tiny configuration, wide enough for packing, long enough that each card writes matrices out."""
    sizes = {
        "hidden_size": 256, "n_embd": 256, "word_embed_proj_dim": 256, "intermediate_size": 512,
        "ffn_dim": 512, "max_position_embeddings": 1024, "n_positions": 1024,
    }  # fmt: skip
    return {name: sizes.get(name, value) for name, value in TINY[family].items()}


@pytest.mark.parametrize("fmt", ["nf4", "int8"])
@pytest.mark.parametrize("family", OTHERS)
def test_linears_of_every_kind(family: str, fmt: str) -> None:
    setup = PeftSetup(weights=fmt, rank=4, dropout=0.1, targets=ALL)
    run = lora_run(setup, packed=fmt, seq=800, attention=attention_of(family))
    assert not differences(wide(family), run, setup)


@pytest.mark.parametrize("family", EXPERTS)
def test_beside_experts(family: str) -> None:
    for fmt in ("nf4", "int8"):
        setup = PeftSetup(weights=fmt, rank=4, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
        assert not differences(wide(family), lora_run(setup, packed=fmt, seq=800), setup)


def test_virtual_tokens_beside_packed_weights() -> None:
    """Prompt tuning: a linear has the rows of the virtual tokens too."""
    setup = PeftSetup(method="prompt", weights="nf4")
    run = PeftRun(
        method=peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20),
        packed="nf4",
        seq=800,
    )
    assert not differences(wide("llama"), run, setup)

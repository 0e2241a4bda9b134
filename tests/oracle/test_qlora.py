"""LoRA beside packed weights: PEFT over bitsandbytes' own linears, every event of a micro-batch.

Without autocast: tensors without data that bitsandbytes runs on ignore it. Of LLM.int8 flags of one byte
are left out, and what its outlier columns take, which are the data's.
"""

from __future__ import annotations

import pytest

pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is not installed; pip install memcalc[test]"
)

from memcalc.inputs.peft import PeftSetup  # noqa: E402
from tests.oracle.support.peft_compare import differences, step_differences  # noqa: E402
from tests.oracle.support.tiny import TINY  # noqa: E402
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

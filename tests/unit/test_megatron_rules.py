"""What stack megatron refuses, each in one line that names what is valid."""

from __future__ import annotations

import pytest

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.stacks import load_stack
from tests.unit.megatron_support import llama, megatron


def refused(layout: dict[str, object] | None = None, **setup: object) -> str:
    with pytest.raises(ConfigError) as caught:
        megatron(llama(), ParallelPlan(**layout or {}), **setup)
    return str(caught.value)


@pytest.mark.parametrize(
    ("setup", "valid"),
    [
        ({"precision": "bf16"}, "fp32, bf16-mixed, fp16-mixed"),
        ({"recompute": "sac"}, "none, selective, full"),
        ({"attention": "efficient"}, "flash, cudnn, eager"),
        ({"precision": "fp32"}, "eager"),
        ({"loss": "chunked"}, "fp32, plain, fused"),
        ({"optimizer": "muon"}, "adamw, sgd, none"),
        ({"optimizer_impl": "loop"}, "fused"),
    ],
)
def test_setups_megatron_has_not(setup, valid):
    said = refused(**setup)
    assert said.endswith(f"on stack megatron; valid: {valid}") and "\n" not in said


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"dp": 8, "fsdp": True}, "zero: got fsdp on stack megatron; valid: 0, 1"),
        ({"dp": 8, "zero": 2}, "zero: got zero 2 on stack megatron; valid: 0, 1"),
        ({"dp": 8, "zero": 1, "reshard": False}, "reshard: got False on stack megatron"),
        ({"dp": 8, "zero": 1, "shard": 3}, "valid: 1, 2, 4, 8"),
        ({"dp": 8, "shard": 4}, "with zero 1"),
        ({"tp": 16}, "tp: got 16; rule: divides the 8 key/value heads"),
    ],
)
def test_layouts_megatron_has_not(layout, said):
    assert said in refused(layout)


def test_what_later_versions_will_have():
    for changes in ({"precision": "fp8-mixed"}, {}):
        layout = {} if changes else {"dp": 8, "zero": 1, "offload": "optimizer"}
        with pytest.raises(NotInThisVersionError, match="is not in this version; valid"):
            megatron(llama(), ParallelPlan(**layout), **changes)


def test_plain_loss_is_the_stacks_own():
    assert megatron(llama(), None, loss="plain")[1] == megatron(llama(), None, loss="fp32")[1]


def test_every_choice_of_the_profile_names_a_release():
    stack = load_stack("megatron")
    for source in stack.sources.values():
        assert "Megatron" in source or "TransformerEngine" in source

"""The option table: every option is a setting or a command's own."""

from __future__ import annotations

from dataclasses import fields

import pytest

from memcalc.cli import options
from memcalc.cli.chart_options import CHART_OPTIONS
from memcalc.cli.feedback_options import FEEDBACK_OPTIONS
from memcalc.cli.interop_options import INTEROP_OPTIONS
from memcalc.cli.options import BY_NAME, COMMANDS, OPTIONS, PANELS
from memcalc.cli.phase_options import PHASE_OPTIONS
from memcalc.cli.run_options import MFU_KINDS, RUN_OPTIONS
from memcalc.cli.search_options import SEARCH_OPTIONS
from memcalc.inputs import parallel, training
from memcalc.inputs.parallel import ParallelPlan
from memcalc.inputs.peft import PeftSetup
from memcalc.inputs.serving import ServingSetup
from memcalc.inputs.training import TrainingSetup

_NAMES = """
seq micro-batch grad-accum global-batch batch context precision weights kv-cache optimizer
optimizer-impl optimizer-dtype no-set-to-none grad-clip dropout recompute attention loss compile gpu
gpu-memory reserve gpus gpus-per-node cluster tp pp cp ep vpp dp sp no-sp zero fsdp schedule offload
peft lora-rank lora-targets lora-dropout lora-dtype virtual-tokens prefix-projection prompt-width
adapter-kind adapter-reduction adapter-width rlhf engine stack calibration layers imbalance set
config save json csv quiet ops timeline chart out device steps fix top price debug
warmup threads reference profile records no-record
cp-method etp shard reshard stage-layers tp-layout offload-device pin-memory no-pin-memory
overlap-grad-reduce overlap-param-gather
recompute-modules capacity-factor pad-to-capacity target-seq
rows source confidence priceable optimizer-in-backward
tokens samples epochs sample-tokens packed hours mfu mfu-kind tokens-per-s tokens-per-s-per-gpu
samples-per-s step-time peak tflops reference-per-gpu power-fraction pue availability mtbf-hours
node-mtbf-hours checkpoint-minutes restart-minutes memory throughput report short
model setup sort step columns x y value strong weak record theme markdown
prompt cache prefill-tokens shared-prefix gpu-memory-utilization no-cuda-graphs repeat-kv
draft draft-tokens acceptance gpu-layers host-memory host-bandwidth
phase decode load-from load-by eval-batches save-as
reference-model critic reward-model generate rollout-batch group passes score-batch frozen-dtype
offload-frozen keep-logits joint-update gpu-share sleep
format tool-version
contribute min-headroom rank max-tp max-pp max-vpp max-cp max-ep max-etp max-micro-batch
"""
_CONTRACT = _NAMES.split()
_SETTINGS = {f.name for f in fields(TrainingSetup)}
#: peft.layers is the second half of --peft freeze:N.
_PEFT = {f"peft.{f.name}" for f in fields(PeftSetup)} - {"peft.layers"}
_LAYOUT = {f.name for f in fields(ParallelPlan)}
_SERVING = {f.name for f in fields(ServingSetup)}
#: Fields of serving whose options are training's too.
_SHARED = {"weights", "attention", "num_layers", "imbalance", "device"}
#: Fields only --set reaches, or the second half of one option.
_WITHOUT_OPTION = {"recompute_layers", "reentrant", "loss_chunks", "separate_labels"}
#: Options that are no field of the training setup.
_OF_COMMANDS = {
    "gpu", "gpu-memory", "reserve", "set", "config", "save", "json", "csv", "quiet", "ops",
    "timeline", "out", "debug", "chart", "device", "steps", "warmup", "threads", "reference",
    "profile", "records", "no-record", "rows", "source", "confidence", "priceable", "cluster",
    "memory", "throughput", "report", "short", "calibration", "markdown", "phase", "decode", "contribute",
    *(option.name for option in (
        *RUN_OPTIONS, *CHART_OPTIONS, *PHASE_OPTIONS, *FEEDBACK_OPTIONS, *INTEROP_OPTIONS,
        *SEARCH_OPTIONS,
    )),
}  # fmt: skip


def test_the_table_holds_every_option_of_the_contract() -> None:
    assert {option.name for option in OPTIONS} == set(_CONTRACT)


@pytest.mark.parametrize("name", _CONTRACT)
def test_every_option_is_a_field_or_a_commands_own(name: str) -> None:
    option = BY_NAME[name]
    own = name in _OF_COMMANDS
    kinds = [option.field, option.parallel, option.serving, own]
    assert sum(map(bool, kinds)) == 1
    assert not option.field or option.field in _SETTINGS or option.field in _PEFT
    assert not option.parallel or option.parallel in _LAYOUT
    assert not option.serving or option.serving in _SERVING
    assert option.panel in PANELS and set(option.commands) <= set(COMMANDS)
    assert option.help


def test_every_degree_of_a_layout_has_an_option() -> None:
    assert {option.parallel for option in OPTIONS if option.parallel} == _LAYOUT


def test_every_field_of_serving_has_an_option() -> None:
    assert {option.serving for option in OPTIONS if option.serving} | _SHARED == _SERVING


def test_every_field_of_fine_tuning_has_an_option() -> None:
    assert {o.field for o in OPTIONS if o.field.startswith("peft.")} == _PEFT


def test_every_training_field_has_an_option_or_is_reached_by_set() -> None:
    reached = {option.field.partition(".")[0] for option in OPTIONS if option.field}
    assert reached | _WITHOUT_OPTION == _SETTINGS


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("precision", training.PRECISIONS),
        ("optimizer", training.OPTIMIZERS),
        ("optimizer-impl", training.OPTIMIZER_IMPLS),
        ("attention", training.ATTENTIONS),
        ("loss", training.LOSSES),
        ("schedule", parallel.SCHEDULES),
        ("offload", parallel.OFFLOADS),
        ("offload-device", parallel.OFFLOAD_DEVICES),
        ("cp-method", parallel.CP_METHODS),
        ("tp-layout", parallel.TP_LAYOUTS),
        ("mfu-kind", MFU_KINDS),
    ],
)
def test_choices_are_those_of_the_library(name: str, valid: tuple[str, ...]) -> None:
    assert BY_NAME[name].choices == valid


def test_every_command_has_its_positional_arguments() -> None:
    assert set(options.POSITIONALS) == set(COMMANDS)

"""Rows of accelerate's YAML for what it hands on: its DeepSpeed and Megatron-LM sections.

Source: accelerate 1.15.0, utils/dataclasses.py (DeepSpeedPlugin, MegatronLMPlugin), which reads each key
from an environment variable that the launcher sets. Its Megatron-LM plugin takes 2 for a
context_parallel_size that is absent, and full recomputation where no granularity is stated.
Checked by: unit/test_interop_accelerate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from memcalc.planning.interop.deepspeed import offloads, offloads_parameters
from memcalc.planning.interop.facts import Facts
from memcalc.planning.interop.rows import Reading, Row, fixed, same, seen, words

_DEEP: Final = "deepspeed_config."
_MEGATRON: Final = "megatron_lm_config.megatron_lm_"


def _deep(facts: Facts) -> bool:
    return bool(facts["stack"] == "deepspeed")


def _megatron(facts: Facts) -> bool:
    return bool(facts["stack"] == "megatron")


def _in(when: Callable[[Facts], bool], value: Callable[[Facts], Any]) -> Callable[[Facts], Any]:
    """A value of a section, None in other sections."""
    return lambda facts: value(facts) if when(facts) else None


def _clips(value: Any, reading: Reading) -> None:
    reading.fields["grad_clip"] = value > 0


def _distributed(value: Any, reading: Reading) -> None:
    reading.fields["zero"] = 1 if value else 0


def _full(facts: Facts) -> bool:
    return _megatron(facts) and facts["recompute"] == "full"


def _device(when: Callable[[Facts], bool]) -> Callable[[Facts], Any]:
    return lambda facts: facts["offload_device"] if when(facts) else "none"


PLUGIN_ROWS: Final = (
    words(f"{_DEEP}zero_stage", "zero", {0: 0, 1: 1, 2: 2, 3: 3}, "count")._replace(
        write=_in(_deep, lambda f: f["zero"])),
    same(f"{_DEEP}gradient_accumulation_steps", "count", "grad_accum_steps", _deep),
    Row(f"{_DEEP}gradient_clipping", "number", "--grad-clip",
        _in(_deep, lambda f: 1.0 if f["grad_clip"] else None), _clips, "above 0"),
    seen(f"{_DEEP}offload_optimizer_device", "text", "--offload optimizer",
         _in(_deep, _device(offloads)), "`cpu`, `nvme`, `none`"),
    seen(f"{_DEEP}offload_param_device", "text", "--offload params",
         _in(_deep, _device(offloads_parameters)), "`cpu`, `nvme`, `none`"),
    fixed(f"{_DEEP}zero3_init_flag", True, lambda f: _deep(f) and f["zero"] == 3, "of loading"),
    same(f"{_MEGATRON}tp_degree", "count", "tp", _megatron),
    same(f"{_MEGATRON}pp_degree", "count", "pp", _megatron),
    same(f"{_MEGATRON}context_parallel_size", "count", "cp", _megatron),
    same(f"{_MEGATRON}expert_model_parallel_size", "count", "ep", _megatron),
    same(f"{_MEGATRON}expert_tensor_parallel_size", "count", "etp",
         lambda f: _megatron(f) and f["etp"] is not None),
    same(f"{_MEGATRON}num_micro_batches", "count", "grad_accum_steps", _megatron),
    same(f"{_MEGATRON}sequence_parallelism", "switch", "sp", _megatron),
    Row(f"{_MEGATRON}use_distributed_optimizer", "switch", "--zero 1",
        _in(_megatron, lambda f: f["zero"] == 1), _distributed),
    Row(f"{_MEGATRON}gradient_clipping", "number", "--grad-clip",
        _in(_megatron, lambda f: 1.0 if f["grad_clip"] else 0.0), _clips, "above 0"),
    seen(f"{_MEGATRON}recompute_activations", "switch", "--recompute selective",
         _in(_megatron, lambda f: f["recompute"] == "selective"), "true is selective"),
    seen(f"{_MEGATRON}recompute_granularity", "text", "--recompute full",
         _in(_full, lambda f: "full"), "`full`, `selective`; absent is full in accelerate 1.15"),
    seen(f"{_MEGATRON}recompute_method", "text", "--recompute full:N",
         _in(_full, lambda f: "block" if f["recompute_layers"] else "uniform"),
         "`uniform` with 1 layer is full, `block` full:N"),
    seen(f"{_MEGATRON}recompute_num_layers", "count", "--recompute full:N",
         _in(_full, lambda f: f["recompute_layers"] or 1)),
)  # fmt: skip

"""The columns of a file of measured runs: their names, and how a cell's text is read.

Every column is optional but what says which model ran and what was measured. A missing cell (empty,
`nan`, `NA`, `null`) means not stated. Own columns of a user are passed over, with a note.
benchmarks/published/README.md says what each column means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from memcalc.errors import ConfigError
from memcalc.inputs.model import MAX_DIM, check_choice
from memcalc.inputs.parallel import CP_METHODS, OFFLOADS, SCHEDULES
from memcalc.inputs.training_names import (
    ATTENTIONS,
    LOSSES,
    OPTIMIZER_IMPLS,
    OPTIMIZERS,
    PRECISIONS,
)
from memcalc.inputs.training_names import RECOMPUTE as RECOMPUTES
from memcalc.units import parse_count

Cell = str | int | float | bool | tuple[int, ...] | Mapping[str, int] | None

#: Precisions a row may state beyond those a training step takes.
QUANTISED: Final = ("int8", "int4", "nf4", "fp8", "bf16-kv-int8")
LATER_PRECISIONS: Final = ("mxfp8-mixed", "nvfp4-mixed")
MEMORY_KINDS: Final = ("allocated", "reserved", "nvidia-smi", "unknown")
#: Whose memory a row gives: the busiest rank's, one stage's, or a part of a GPU's.
RANKS: Final = ("worst", "first", "last", "weights", "kv-pool")
MISSING: Final = frozenset({"", "nan", "na", "null"})
_LONGEST_TEXT = 400
_PAIR = re.compile(r"\s*([A-Za-z_]+)\s*=\s*([0-9]+)\s*")


class Column(NamedTuple):
    """One column. kind: text, whole, number, flag, wholes, pairs, recompute; least: of a whole one."""

    name: str
    kind: str = "text"
    choices: tuple[str, ...] = ()
    least: int = 1


def _columns(kind: str, names: str, least: int = 1) -> tuple[Column, ...]:
    return tuple(Column(name, kind, least=least) for name in names.split())


_CHOICES: Final = (
    Column("confidence", choices=("high", "med", "low")),
    Column("run", choices=("train", "finetune", "prefill", "decode", "load")),
    Column("mlp", choices=("gelu", "relu", "swiglu", "geglu")),
    Column("position", choices=("learned", "rope", "alibi")),
    Column("fsdp", choices=("none", "fsdp1", "fsdp2")),
    Column("attention", choices=(*ATTENTIONS, "sdpa", "triton")),
    Column("loss", choices=LOSSES),
    Column("precision", choices=(*PRECISIONS, *LATER_PRECISIONS, *QUANTISED)),
    Column("optimizer", choices=(*OPTIMIZERS, "paged-adamw-8bit")),
    Column("optimizer_impl", choices=OPTIMIZER_IMPLS),
    Column("offload", choices=OFFLOADS),
    Column("schedule", choices=SCHEDULES),
    Column("cp_method", choices=CP_METHODS),
    Column("reduce_precision", choices=("fp32", "bf16")),
    Column("mem_unit", choices=("GB", "GiB", "MB", "MiB", "unknown")),
    Column("mem_kind", choices=MEMORY_KINDS),
    Column("mem_rank", choices=RANKS),
    Column("flops_kind",
           choices=("model-full-square", "model-causal", "hardware", "unknown")),
    Column("priceable", choices=("yes", "partly", "no")),
)  # fmt: skip

COLUMNS: Final = (
    *_columns("text", "id source ref framework_text model family interconnect_text gpu stack peft "
              "precision_text optimizer_text mem_rank_note why_not attention_mask lora_targets "
              "quantizer cluster"),
    *_CHOICES,
    *_columns("whole", "num_hidden_layers hidden_size intermediate_size num_attention_heads "
              "num_key_value_heads head_dim vocab_size num_experts experts_per_token "
              "moe_intermediate_size seq context gpus_per_node n_gpus tp pp vpp dp cp ep etp "
              "micro_batch global_batch grad_accum shard_group lora_rank generated_tokens parameters"),
    *_columns("whole", "shared_experts first_dense_layers zero", least=0),
    *_columns("number", "mem_gb step_s tokens_per_s_per_gpu tflops_per_gpu mfu_pct hfu_pct "
              "node_network_gbps"),
    *_columns("flag", "tied sp compile optimizer_in_backward async_tp"),
    Column("mla", "pairs"),
    Column("recompute", "recompute"),
    Column("stage_layers", "wholes", least=0),
)  # fmt: skip
BY_NAME: Final = {column.name: column for column in COLUMNS}
#: Columns of which a file needs at least one: what was measured.
MEASURED: Final = (
    "mem_gb",
    "tokens_per_s_per_gpu",
    "step_s",
    "tflops_per_gpu",
    "mfu_pct",
    "hfu_pct",
)


def read_cell(column: Column, text: str) -> Cell:
    """The value a cell's text stands for, None where it is missing.

    Raises ConfigError `column: got ...; rule: ...`. Checked by: unit/test_accuracy_rows.py.
    """
    text = text.strip()
    if text.lower() in MISSING:
        return None
    if column.choices:
        check_choice(column.name, text, column.choices)
        return text
    return _READERS[column.kind](column, text)


def _text(column: Column, text: str) -> str:
    if len(text) > _LONGEST_TEXT:
        raise ConfigError(
            f"{column.name}: got {len(text)} characters; rule: at most {_LONGEST_TEXT}"
        )
    return text


def _whole(column: Column, text: str) -> int:
    """A count; `8.0`, as tables write whole numbers beside missing ones, is 8; `8k` is 8192."""
    value = parse_count(text, column.name)
    most = MAX_DIM if column.name != "parameters" else 1 << 53
    if not column.least <= value <= most:
        raise ConfigError(f"{column.name}: got {text!r}; rule: {column.least} to {most}")
    return value


def _number(column: Column, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{column.name}: got {text[:40]!r}; rule: a number above 0")
    return value


def _flag(column: Column, text: str) -> bool:
    said = text.lower()
    if said not in ("true", "false", "yes", "no", "1", "0"):
        raise ConfigError(f"{column.name}: got {text[:40]!r}; valid: true, false")
    return said in ("true", "yes", "1")


def _wholes(column: Column, text: str) -> tuple[int, ...]:
    """Counts with blanks, commas or semicolons between them: `9 9 8 6`."""
    return tuple(_whole(column, word) for word in re.split(r"[\s,;]+", text))


def _pairs(column: Column, text: str) -> dict[str, int]:
    """Names and counts: `kv_lora_rank=512;qk_rope=64`."""
    found = {}
    for part in text.split(";"):
        match = _PAIR.fullmatch(part)
        if not match:
            raise ConfigError(f"{column.name}: got {part[:40]!r}; rule: name=number;name=number")
        found[match[1]] = _whole(column, match[2])
    return found


def _recompute(column: Column, text: str) -> str:
    """A recomputation policy; `full:N` is the first N blocks of each stage."""
    base, _, blocks = text.partition(":")
    check_choice(column.name, base, RECOMPUTES)
    if blocks and base != "full":
        raise ConfigError(f"{column.name}: got {text[:40]!r}; rule: only full:N takes a number")
    if blocks:
        _whole(column, blocks)
    return text


_READERS: Final[Mapping[str, Callable[[Column, str], Cell]]] = {
    "text": _text, "whole": _whole, "number": _number, "flag": _flag, "wholes": _wholes,
    "pairs": _pairs, "recompute": _recompute,
}  # fmt: skip

"""Exports of a few setups for tests: the tool's document and its text."""

from __future__ import annotations

import shlex
from typing import Any

from memcalc.cli.app import parse_arguments
from memcalc.cli.export import Exported, exported
from memcalc.cli.import_settings import Imported, imported
from memcalc.planning.interop.formats import parsed
from memcalc.planning.interop.rows import Reading
from memcalc.planning.interop.tool import read

#: Setups in each tool's reach, as words after `memcalc export`.
SETUPS = {
    "deepspeed": (
        "gpt2 --gpus 1",
        "llama-3.1-8b --gpus 8 --zero 1 --precision fp16-mixed --grad-clip",
        "llama-3.1-8b --gpus 8 --zero 2 --offload optimizer --pin-memory --grad-accum 4",
        "llama-3.1-8b --gpus 8 --zero 3 --offload params --offload-device nvme --micro-batch 2",
        "llama-3.2-1b --gpus 4 --zero 3 --optimizer lion",
        "llama-3.2-1b --gpus 4 --zero 2 --optimizer momentum --set stack.overlap_comm=true",
        "llama-3.2-1b --gpus 4 --zero 1 --optimizer-impl fused --precision fp32",
    ),
    "accelerate": (
        "gpt2 --gpus 1",
        "llama-3.1-8b --gpus 8",
        "llama-3.1-8b --gpus 16 --fsdp --recompute full",
        "llama-3.1-8b --gpus 16 --fsdp --shard 8 --reshard false",
        "llama-3.1-8b --gpus 8 --fsdp --stack fsdp1 --zero 3",
        "llama-3.1-8b --gpus 16 --fsdp --tp 2",
        "llama-3.1-8b --gpus 16 --fsdp --cp 2",
        "llama-3.1-8b --gpus 8 --fsdp --offload params --precision fp16-mixed",
        "llama-3.1-8b --gpus 8 --zero 3 --offload optimizer",
        "llama-3.1-8b --gpus 16 --stack megatron --tp 2 --pp 2 --zero 1 --grad-accum 4",
    ),
    "torchtitan": (
        "llama-3.1-8b --gpus 8 --fsdp --seq 8k --recompute sac --compile --optimizer-impl fused",
        "llama-3.1-8b --gpus 16 --fsdp --shard 8 --recompute full --precision bf16",
        "llama-3.1-70b --gpus 64 --fsdp --tp 8 --offload none --reshard false",
        "llama-3.1-8b --gpus 16 --fsdp --pp 2 --vpp 2 --schedule interleaved --grad-accum 8",
        "llama-3.1-8b --gpus 16 --fsdp --cp 2 --loss chunked",
        "llama-3.1-8b --gpus 8 --fsdp --offload params",
    ),
    "megatron": (
        "gpt-3-175b --gpus 1024 --tp 8 --pp 16 --grad-accum 24 --recompute full",
        "llama-3.1-8b --gpus 16 --tp 2 --pp 2 --vpp 2 --schedule interleaved --zero 1 --grad-accum 4",
        "mixtral-8x7b --gpus 64 --tp 4 --ep 8 --zero 1 --recompute selective --grad-clip",
        "deepseek-v3 --gpus 512 --pp 8 --ep 64 --zero 1 --grad-accum 16 "
        "--stage-layers 8,8,8,8,8,8,8,5",
        "qwen3-8b --gpus 8 --cp 2 --cp-method ulysses --tp 2 --attention cudnn --loss fused",
        "llama-3.2-1b --gpus 4 --zero 1 --optimizer-dtype bf16 --overlap-grad-reduce",
    ),
}  # fmt: skip


def export_of(tool: str, words: str, version: str = "") -> Exported:
    """The export of a setup for a tool."""
    beside = ["--format", tool, *(["--tool-version", version] if version else [])]
    return exported(parse_arguments("export", [*shlex.split(words), *beside]))


def import_of(source: object, *words: str) -> Imported:
    """The import of a file or of arguments, with options beside it."""
    return imported(parse_arguments("import", [str(source), *words]))


def read_text(text: str, name: str, tool: str | None = None, **fields: Any) -> Reading:
    """What a text is read as; name: a file name, whose ending tells the tool."""
    known, document = parsed(text.encode(), name, tool)
    return read(known, document, Reading(**fields))


def kinds(reading: Reading) -> dict[str, str]:
    """What was made of every key."""
    return {remark.key: remark.kind for remark in reading.remarks}

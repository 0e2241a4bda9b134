"""What other programs call things: the word of ours for an option or command that is not known.

A newcomer writes `--batch-size`, `--gradient-checkpointing`, `memcalc serve`. The nearest spelling is no
help there (`--eval-batches`), so the error names what means the same here. Only errors read this.
Checked by: cli/test_errors.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from memcalc.cli.options import BY_FLAG, COMMANDS, options_of
from memcalc.errors import ConfigError, nearest, squeezed, unknown

#: What means the same here -> names elsewhere. Of several for one name the command's own is said.
_OPTIONS: Final = {
    "--micro-batch": "batch batch-size bs mbs b micro-batch-size per-device-train-batch-size "
    "per-device-batch-size local-batch-size train-batch-size",
    "--batch": "batch-size bs b micro-batch max-num-seqs parallel num-prompts concurrency",
    "--global-batch": "global-batch-size gbs total-batch-size",
    "--grad-accum": "gradient-accumulation-steps gradient-accumulation grad-acc "
    "accumulate-grad-batches ga",
    "--seq": "seq-len seq-length sequence-length max-seq-len max-seq-length max-length block-size "
    "cutoff-len context context-length ctx ctx-len s",
    "--context": "seq seq-len seq-length sequence-length max-seq-len max-model-len max-length n-ctx "
    "ctx ctx-size context-length c",
    "--prompt": "input-len prompt-len prompt-length max-prompt-length",
    "--generate N": "max-new-tokens output-len max-completion-length response-length",
    "--context N, prompt and new tokens together": "max-new-tokens max-tokens output-len n-predict "
    "new-tokens generate",
    "--precision": "dtype torch-dtype mixed-precision amp data-type",
    "--precision bf16-mixed": "bf16",
    "--precision fp16-mixed": "fp16 half",
    "--precision fp8-mixed": "fp8",
    "--weights": "dtype torch-dtype quant quantization quantize precision",
    "--weights nf4": "load-in-4bit 4bit int4 bits",
    "--weights int8": "load-in-8bit 8bit int8",
    "--optimizer": "optim",
    "--recompute full": "gradient-checkpointing activation-checkpointing checkpoint-activations "
    "grad-checkpointing ac recompute-granularity checkpointing",
    "--attention flash": "flash-attn flash-attention use-flash-attn flash",
    "--attention": "attn attn-implementation sdpa",
    "--peft lora": "lora use-peft use-lora adapter",
    "--peft qlora": "qlora",
    "--lora-rank": "lora-r r rank",
    "--lora-targets": "target-modules lora-target-modules lora-modules",
    "--zero 3 --stack deepspeed": "deepspeed zero3 zero-3 stage3",
    "--zero": "zero-stage stage zero1 zero2 zero-1 zero-2",
    "--fsdp": "fsdp2 fully-shard",
    "--gpus": "num-gpus n-gpus ngpus gpu-count world-size num-processes num-devices devices "
    "nproc-per-node n",
    "--gpus N --gpus-per-node M": "nodes nnodes num-nodes num-machines",
    "--tp": "tensor-parallel tensor-parallel-size tensor-model-parallel-size tp-size "
    "tensor-parallel-degree",
    "--pp": "pipeline-parallel pipeline-parallel-size pipeline-model-parallel-size pp-size "
    "pipeline-parallel-degree",
    "--cp": "context-parallel context-parallel-size",
    "--ep": "expert-parallel expert-parallel-size expert-model-parallel-size enable-expert-parallel",
    "--dp": "data-parallel data-parallel-size",
    "--sp": "sequence-parallel",
    "--offload optimizer": "cpu-offload offload-optimizer zero-offload",
    "--offload params": "offload-param offload-params",
    "--kv-cache": "kv-cache-dtype kv-dtype cache-type-k ctk kv-quant",
    "--gpu-layers": "ngl n-gpu-layers",
    "--stack": "framework backend trainer",
    "--engine": "framework backend runtime server",
    "--gpu": "gpu-type gpu-name device-name hardware accelerator card device",
    "--gpu-memory": "vram gpu-mem mem memory max-memory",
    "--price": "cost price-per-hour gpu-price hourly-rate",
    "--tokens-per-s": "tokens-per-second tps throughput",
    "--tokens": "num-tokens train-tokens dataset-tokens",
    "--layers": "num-layers n-layers num-hidden-layers",
    "--out FILE": "output output-file save-to",
    "--chart FILE": "plot",
    "--ops": "verbose v details",
    "MODEL, the first word": "model model-name model-name-or-path m",
}  # fmt: skip
_COMMANDS: Final = {
    "estimate": "train memory mem vram fit fits check calc calculate calculator run size",
    "infer": "serve serving inference generate generation decode kv-cache",
    "search": "tune autotune optimize optimise plan sweep auto",
    "solve": "max maximize maximise largest",
    "advise": "suggest recommend advice help-me",
    "compare": "versus vs table",
    "chart": "plot draw graph picture figure",
    "train-time": "time cost price days hours duration energy",
    "mfu": "flops utilisation utilization",
    "measure": "bench benchmark profile",
    "verify": "test validate prove",
    "list models": "models",
    "list gpus": "gpus devices hardware",
    "list": "ls",
    "show": "info describe inspect cat",
    "export": "convert config",
    "explain": "why breakdown formulas",
    "--version": "version",
}  # fmt: skip
#: Option -> its word here -> names elsewhere. Said as a hint, never taken: kernels or dtypes may differ.
_VALUES: Final = {
    "stack": {
        "hf": "transformers huggingface hugging-face trl peft trainer axolotl llama-factory accelerate",
        "torch": "pytorch fsdp fsdp2 ddp", "deepspeed": "zero ds",
        "megatron": "megatron-lm megatron-core mcore nemo megatron-bridge transformer-engine te",
    },
    "engine": {"llama.cpp": "ollama lmstudio llamafile gguf koboldcpp cpp",
               "transformers": "hf huggingface hugging-face pytorch torch"},
    "precision": {"bf16-mixed": "mixed amp autocast bf16-autocast", "bf16": "bfloat16 pure-bf16",
                  "fp16-mixed": "fp16 float16 half", "fp32": "float32 full float fp32-full",
                  "fp8-mixed": "fp8 float8 e4m3"},
    "optimizer": {"adamw": "adam adamw-torch adamw-hf adamw-torch-fused",
                  "adamw-8bit": "adam-8bit paged-adamw-8bit adamw-bnb-8bit bnb"},
    "recompute": {"full": "true yes on all", "none": "false no off"},
    "attention": {"flash": "flash-attn flash-attention flash-attention-2 fa2 flash2 sdpa",
                  "eager": "math naive vanilla", "efficient": "mem-efficient xformers"},
    "peft": {"freeze:N": "frozen freezing", "adapter": "adapters bottleneck houlsby",
             "prefix": "prefix-tuning", "prompt": "prompt-tuning", "p-tuning": "ptuning-v1"},
}  # fmt: skip


def no_such_option(command: str, flag: str) -> ConfigError:
    """The error for an option that a command has not: what means the same, else the nearest."""
    taken = {known.flag for known in options_of(command)}
    same = _meant(_OPTIONS, flag.lstrip("-"), lambda said: said.split(" ")[0] in taken | {"MODEL,"})
    if flag in BY_FLAG:
        others = [name for name in COMMANDS if name in BY_FLAG[flag].commands]
        rule = f"nearest valid: {same}" if same else f"see `memcalc {command} -h`"
        listed = ", ".join(others if len(others) <= 6 else [*others[:6], "..."])
        return ConfigError(f"{flag}: not an option of {command}, but of {listed}; {rule}")
    close = nearest(flag, taken)
    rule = f"nearest: {', '.join(close)}" if close else f"see `memcalc {command} --help`"
    if same:
        rule = f"nearest valid: {same}"
    return ConfigError(f"option: got {flag!r}, not known; {rule}")


def no_such_command(word: str) -> ConfigError:
    """The error for a first word that is no command: a model, an option, another program's word."""
    if word in BY_FLAG:
        return ConfigError(
            f"option: got {word!r} before the command; rule: memcalc COMMAND ... [OPTIONS]"
        )
    if word.startswith("-"):
        return unknown("option", word, ["--help", "--version"])
    same = _meant(_COMMANDS, word, lambda _: True)
    if same:
        return ConfigError(f"command: got {word!r}, not known; nearest valid: memcalc {same}")
    if _is_model(word):
        return ConfigError(
            f"command: got {word!r}, a model; rule: memcalc COMMAND MODEL; "
            f"nearest valid: memcalc estimate {word}"
        )
    return unknown("command", word, [*COMMANDS, "help"])


def no_such_topic(word: str) -> ConfigError:
    """The error of `memcalc help WORD` for a word that is no command: an option's name, perhaps."""
    option = BY_FLAG.get(word) or BY_FLAG.get(f"--{word}")
    if option is None:
        return no_such_command(word)
    return ConfigError(
        f"help: got {word!r}, an option; rule: memcalc help COMMAND {option.flag}; nearest valid: "
        f"memcalc help {option.commands[0]} {option.flag}"
    )


def check_value(name: str, word: str) -> None:
    """Raise ConfigError for a value that other programs use, naming ours: `--stack transformers`."""
    same = _meant(_VALUES.get(name, {}), word, lambda _: True)
    if same and squeezed(same) != squeezed(word):
        raise ConfigError(f"--{name}: got {word!r}, not known; nearest valid: --{name} {same}")


def _meant(table: dict[str, str], word: str, fits: Callable[[str], bool]) -> str:
    """The first entry that has the word among its names and fits; "" where none does."""
    wanted = squeezed(word)
    for said, names in table.items():
        if wanted and wanted in map(squeezed, names.split()) and fits(said):
            return said
    return ""


def _is_model(word: str) -> bool:
    from memcalc.inputs.models import load_model

    try:
        load_model(word)
    except ConfigError:
        return False
    return True

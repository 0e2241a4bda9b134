"""Cases W: bytes of weights and states, and whether a model fits."""

from __future__ import annotations

from typing import Final

from benchmarks.worked.case import Case, Figure

_ALL: Final = "sum(memory.states.values())"
_HALF: Final = ("infer llama-7b --weights fp16 --context 512",)
_MIXED: Final = ("estimate llama-7b --precision bf16-master",)
_FP32: Final = ("estimate llama-7b --precision fp32",)
_SAMPLE: Final = ("estimate llama-7b --seq 2048 --precision bf16 --set kernels.norm=hand",)
_VICUNA: Final = (
    "estimate llama-7b --gpus 4 --fsdp --gpu a100-40gb --seq 2048 --micro-batch {} --global-batch 128 "
    "--recompute full --optimizer-impl loop"
)
_FILES: Final = {"fp16": (13.0, 24.0, 60.0, 120.0), "ggml-2023:Q4_0": (3.9, 7.8, 19.5, 38.5)}
_BY_HAND: Final = {
    "nf4": (3.60, 6.71, 16.22, 32.09),
    "int8": (6.52, 12.43, 30.69, 61.29),
    "gguf:Q4_0": (3.53, 6.82, 17.04, 34.20),
}
_MODELS: Final = ("llama-7b", "llama-13b", "llama-33b", "llama-65b")
_STAGES: Final = (
    "estimate llama-65b --gpu v100-32gb --pp {} --precision bf16 --seq 16 --grad-accum 8"
)
_QLORA: Final = (
    "estimate llama-65b --peft qlora --lora-rank {} --lora-targets all-linear --seq {} --precision bf16 "
    "--recompute full --stack hf --gpu a100-80gb"
)
_QLORA_WHY: Final = {
    64: "closed formulas have logits and a block on top of states; the peak is AdamW's step, whose foreach "
    "copy of 3.2 GB they leave out",
    8: "closed formulas have the logits and the block computed again at one instant; the peak is in the "
    "block, where the logits are gone",
}
_QLORA_PEAK: Final = {64: "optimizer", 8: "backward/layers"}
_GPT3: Final = "estimate gpt-3-175b --gpu a100-80gb --seq 2048 --recompute full --gpus {} {}"
_PER_PARAMETER: Final = "memory.states.{} / model.parameters"


def _file(weights: str) -> str:
    """Options of a file of this kind of weights."""
    return weights + (" --engine llama.cpp" if ":" in weights else "")


def _sizes(weights: str, sizes: tuple[float, ...], allowed: float, why: str) -> list[Figure]:
    return [
        Figure(
            f"{model} in {weights}", size, "GiB",
            (f"infer {model} --context 512 --weights {_file(weights)}",),
            "weights_bytes / GiB", allowed, why,
        )
        for model, size in zip(_MODELS, sizes, strict=True)
    ]  # fmt: skip


def _eight_bits(model: str, size: float, hidden: int) -> Figure:
    """The table's files have 49,953 rows in embedding and head, at 9 bits an element."""
    return Figure(
        f"{model}, vocabulary 49,953, in Q8_0 of 2023", size, "GB",
        (f"infer {model} --context 512 --weights ggml-2023:Q8_0 --engine llama.cpp",),
        f"(weights_bytes + 2 * (49953 - 32000) * {hidden} * 9 / 8) / GB", 0.04,
    )  # fmt: skip


STATES: Final = (
    Case("W1", "16-bit weights of n billion parameters take 2n GB", "memory-notes", (
        *(
            Figure(f"{n} billion", 2.0 * n, "GB", _HALF, f"weights_bytes / model.parameters * {n}")
            for n in (7, 13, 65)
        ),
        Figure("the model called 7B", 14.0, "GB", _HALF, "weights_bytes / GB", 0.04,
               "it has 6.74 billion parameters", "model.parameters == 6738415616"),
    )),
    Case("W2", "states of mixed-precision AdamW: 2 + 2 + 12 bytes a parameter", "zero", (
        Figure("a parameter", 16.0, "bytes", _MIXED, f"{_ALL} / model.parameters"),
        Figure("7 billion", 112.0, "GB", _MIXED, f"{_ALL} / model.parameters * 7"),
        Figure("the same under autocast, 4 + 4 + 8", 16.0, "bytes",
               ("estimate llama-7b --precision bf16-mixed",), f"{_ALL} / model.parameters"),
    )),
    Case("W3", "full fine-tuning in practice: 16n to 20n GB", "memory-notes", tuple(
        Figure(f"LLaMA-7B as in W10, micro-batch {micro}, allocated, all GPUs", (16.0, 20.0),
               "GB a billion", (_VICUNA.format(micro),),
               "4 * memory.peak_allocated_bytes / model.parameters", (16.0, 20.0))
        for micro in (1, 2)
    )),
    Case("W4", "LLaMA-6B with one byte for every element of every state, context 1.3 GB",
         "memory-notes", (
        Figure("parameters, gradients, two states of AdamW, context as given; no activations", 25.3,
               "GB", _FP32, f"{_ALL} / 4 / model.parameters * 6.0 + 1.3", 0.01,
               "four elements a parameter, from fp32's states; no training keeps its states so: int8 "
               "matrices take no gradient", "sum(memory.states.values()) == 16 * model.parameters"),
    ), ("test_worked_states.py::test_int8_matrices_hold_one_byte_and_take_no_gradient",)),
    Case("W5", "the same in fp32", "memory-notes", (
        Figure("parameters of 6.0 billion", 24.0, "GB", _FP32,
               _PER_PARAMETER.format("parameters") + " * 6"),
        Figure("AdamW of 6.0 billion", 48.0, "GB", _FP32,
               _PER_PARAMETER.format("optimizer") + " * 6"),
    )),
    Case("W6", "activations of one sample of 2048 tokens, one byte each, two tensors a layer",
         "memory-notes", (
        Figure("(hidden + MLP width) x tokens x layers", 990.0, "MB", _SAMPLE,
               "(setup.dims.h + setup.dims.f) * setup.dims.s * model.num_hidden_layers / MB", 0.001),
        Figure("what backward needs, bf16", 990.0, "MB", _SAMPLE,
               "memory.saved_for_backward_bytes / MB", None,
               "a layer keeps (16 h + 8 f) bytes a token and q, k, v, attention's output and two "
               "statistics, not two tensors of one byte; logits come on top",
               "memory.saved_per_layer_bytes == 2048 * (16 * 4096 + 8 + 8 * 4096 + 4 * 32 + 8 * 11008)"
               " + 24"),
    )),
    Case("W7", "the largest model that an 80 GB card loads in fp16", "taught", (
        Figure("80e9 bytes", 40.0, "billion", _HALF, "80 / (weights_bytes / model.parameters)"),
        Figure("80 GiB", 42.9, "billion", _HALF,
               "80 * GiB / (weights_bytes / model.parameters) / 1e9", 0.002),
    )),
    Case("W8", "the largest model that an 80 GB card trains, by its states", "taught", (
        Figure("80e9 bytes", 5.0, "billion", _MIXED, f"80 / ({_ALL} / model.parameters)"),
        Figure("80 GiB", 5.37, "billion", _MIXED,
               f"80 * GiB / ({_ALL} / model.parameters) / 1e9", 0.001),
        Figure("3.2 billion train there", "yes", "",
               ("estimate llama-3.2-3b --gpu h100-80gb --recompute full",), "fits"),
        Figure("6.7 billion train there", "no", "",
               ("estimate llama-7b --gpu h100-80gb --recompute full",), "fits"),
    )),
    Case("W9", "sizes of LLaMA's files", "llama-cpp, chinese-llama", (
        *_sizes("fp16", _FILES["fp16"], 0.04, "the table is rounded, at 65B to tens"),
        *_sizes("ggml-2023:Q4_0", _FILES["ggml-2023:Q4_0"], 0.04,
                "7.8 and 19.5 are 2 and 5 times the 3.9 of 7B, which is 5 bits an element; at 5 bits 13B and "
                "33B are 7.58 and 18.94"),
        _eight_bits("llama-7b", 7.8, 4096),
        _eight_bits("llama-13b", 14.9, 5120),
        *(
            one._replace(asked=f"{one.asked}, today's format, by hand")
            for weights, sizes in _BY_HAND.items()
            for one in _sizes(
                weights, sizes, 0.01,
                "by hand every matrix is in it; the head of today's files is in Q6_K"
                if weights == "gguf:Q4_0" else "",
            )
        ),
    )),
    Case("W10", "Vicuna-7B, full fine-tuning with FSDP on 4 x A100-40G, global batch 128",
         "vicuna-training", (
        Figure("fits", "yes", "", (_VICUNA.format(2),), "fits"),
        Figure("in all, as the driver shows it", 160.0, "GB", (_VICUNA.format(2),),
               "4 * memory.device_used_bytes / GB", (120.0, 160.0),
               "160 GB is what the cards have together; the run leaves some of it",
               "memory.device_used_bytes < memory.usable_bytes"),
    )),
    Case("W11", "LLaMA-65B in fp16 on V100s of 32 GB", "memory-notes", (
        Figure("weights", 130.6, "GB", ("infer llama-65b --weights fp16 --context 512",),
               "weights_bytes / GB", 0.001),
        Figure("cards to load it, decimal", 5.0, "cards",
               ("infer llama-65b --weights fp16 --context 512",), "ceil(weights_bytes / (32 * GB))"),
        Figure("room that weights leave on the fullest of four", (0.5, 1.0), "GiB",
               (_STAGES.format(4),),
               "(memory.usable_bytes - max(s.states.parameters for s in memory.stages)) / GiB",
               (0.3, 1.1), "a card of 32 GB shows 31.1 GiB and more: four load it, and cannot serve it",
               "memory.usable_bytes > max(s.states.parameters for s in memory.stages)"),
        Figure("four serve 512 positions", "no", "", (
            "infer llama-65b --weights fp16 --engine vllm --pp 4 --gpu v100-32gb --context 512 "
            "--gpu-memory-utilization 0.97",), "fits"),
        Figure("five serve 512 positions", "yes", "", (
            "infer llama-65b --weights fp16 --engine vllm --pp 5 --gpu v100-32gb --context 512 "
            "--gpu-memory-utilization 0.97",), "fits"),
    )),
    Case("W12", "LLaMA-65B, 4-bit base and LoRA of rank 64 on one GPU", "memory-notes", (
        *(
            Figure(f"{tokens} tokens, allocated", 50.0, "GB", (_QLORA.format(64, tokens),),
                   "memory.peak_allocated_bytes / GB", 0.15,
                   "called about 50 or more: base 34.5 GB, adapters 16 bytes a parameter 12.8 GB, the "
                   "rest grows with tokens",
                   "memory.states.gradients == 4 * model.trainable_parameters")
            for tokens in (512, 2048)
        ),
        *(
            Figure(f"rank {rank}, {tokens} tokens, by hand", hand, "GB", (_QLORA.format(rank, tokens),),
                   "memory.peak_allocated_bytes / GB", 0.05,
                   _QLORA_WHY[rank], f"memory.peak_at.startswith('{_QLORA_PEAK[rank]}')")
            for rank, tokens, hand in ((64, 512, 49.8), (64, 2048, 53.2), (8, 512, 38.6), (8, 2048, 42.0))
        ),
    ), ("test_worked_tuning.py::test_w12_is_base_and_adapters_for_the_most_part",)),
    Case("W13", "LLaMA-7B does not train in fp32 on 24 GB", "taught", tuple(
        Figure(f"fits an RTX 3090, recompute {word}", "no", "",
               (f"estimate llama-7b --gpu rtx-3090 --precision fp32 --recompute {word}",), "fits",
               shown="sum(memory.states.values()) == 16 * model.parameters > 4 * memory.usable_bytes")
        for word in ("none", "full")
    )),
    Case("W14", "Vicuna in fp16, one sequence of 2048 positions, context of half a GB", "vicuna", tuple(
        Figure(asked, figure, "GB", (f"infer {model} --weights fp16 --context 2048",),
               "(memory.peak_allocated_bytes - memory.breakdown.workspace) / GB + 0.5", allowed, why)
        for model, asked, figure, allowed, why in (
            ("llama-13b", "13B", 28.0, 0.1, ""),
            ("llama-7b", "7B", 14.0, 0.1,
             "14 GB are the weights alone (13.5) and the context; 2048 positions of cache are 1.1 more"),
            ("llama-13b", "13B, by hand", 28.2, 0.01, ""),
            ("llama-7b", "7B, by hand", 15.05, 0.01, ""),
        )
    )),
    Case("W15", "GPT-3 175B: 64 x A100-80G; 32 with savings", "taught", (
        Figure("states a GPU of 64 under ZeRO-3", 43.75, "GB", (_GPT3.format(64, "--fsdp"),),
               f"{_ALL} / GB", 0.005),
        Figure("64 fit", "yes", "", (_GPT3.format(64, "--fsdp"),), "fits"),
        Figure("32 fit with ZeRO-3 and recomputation alone", "no", "", (_GPT3.format(32, "--fsdp"),),
               "fits", why="states are 87.3 GB of 85.9 GB",
               shown="sum(memory.states.values()) > 80 * GiB"),
        Figure("32 fit with 8-bit AdamW", "yes", "",
               (_GPT3.format(32, "--fsdp --optimizer adamw-8bit"),), "fits"),
        Figure("32 fit with the optimizer on the host", "yes", "",
               (_GPT3.format(32, "--zero 3 --offload optimizer --stack deepspeed"),), "fits",
               shown="memory.states.optimizer == memory.states.master == 0"),
        Figure("64 fit as Megatron divides it, 18 bytes a parameter", "yes", "",
               ("estimate gpt-3-175b --stack megatron --tp 8 --pp 8 --grad-accum 8 --recompute full "
                "--gpu a100-80gb",), "fits"),
        Figure("32 fit as Megatron divides it", "no", "",
               ("estimate gpt-3-175b --stack megatron --tp 8 --pp 4 --grad-accum 8 --recompute full "
                "--gpu a100-80gb",), "fits"),
    )),
    Case("W16", "TF32 keeps 19 significant bits in 32", "tf32", (
        Figure("an element", 4.0, "bytes", ("estimate llama-3.2-1b --precision tf32",),
               _PER_PARAMETER.format("parameters")),
    ), ("test_worked_states.py::test_tf32_is_fp32_in_memory",)),
)  # fmt: skip

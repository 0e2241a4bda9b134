"""Cases P: parameter-efficient fine-tuning, counts and memory."""

from __future__ import annotations

from typing import Final

from benchmarks.worked.case import Case, Figure

_SIX: Final = "q_proj,k_proj,v_proj,gate_proj,up_proj,down_proj"
_GLM: Final = (
    "estimate chatglm-6b --stack hf --attention eager --recompute full --seq {seq} --micro-batch {batch} "
    "--gpu {gpu} --precision {precision} {peft}"
)
_LORA: Final = "--peft lora --lora-targets query_key_value --weights {}"
_PREFIX: Final = "--peft prefix --virtual-tokens 16 --weights {}"
_FREEZE: Final = "--peft freeze:3 --lora-targets dense_h_to_4h,dense_4h_to_h --weights {}"
_SHOWN: Final = "memory.device_used_bytes / GB"
_PADDING: Final = (
    "the source names no padded length and reads whole GB off; it grows by 4 GB for 4 and for 8 added "
    "samples, so no length gives all its rows"
)
_REENTRANT: Final = (
    "; checkpointing is reentrant, as the code of 2023 had it: the other form keeps the inputs of "
    "LLM.int8's products"
)
#: fp32, one A100 of 80 GB, tweets of about 64 tokens; encoder-decoders answer with up to three.
_FP32: Final = (
    "estimate {model} --precision fp32 --seq 64 {target}--micro-batch 8 --gpu a100-80gb {more}"
)
_FULL: Final = "--stack hf --optimizer-impl loop"
_TUNED: Final = "--stack hf --optimizer-impl loop --peft lora --lora-dropout 0.1"
_OFFLOAD: Final = "--stack deepspeed-0.8 --zero 3 --offload params --peft lora --lora-dropout 0.1"
_PROCESS: Final = "memory.host_bytes / GB + 3.5"
_HOST: Final = (
    "4 bytes a parameter and a process of 3 to 4 GB (3.5 is taken) are what the scripts put there; what "
    "else the host held is not published"
)


def _glm(
    asked: str,
    theirs: float,
    allowed: float | tuple[float, float] | None,
    peft: str,
    **fields: object,
) -> Figure:
    """ChatGLM-6B as nvidia-smi shows it; bitsandbytes' int8 runs from Turing on, so on an A100."""
    own = {"seq": 384, "batch": 4, "precision": "fp16-mixed"} | fields
    gpu = "a100-40gb" if "int8" in peft else "v100-32gb"
    why = _PADDING
    if "int8" in peft:
        peft += " --set training.reentrant=true"
        why += _REENTRANT
    command = _GLM.format(gpu=gpu, peft=peft, **own)
    return Figure(
        f"{asked}, padded to {own['seq']}", theirs, "GB", (command,), _SHOWN, allowed, why
    )


def _fp32(asked: str, model: str, more: str, theirs: float, allowed: float, why: str) -> Figure:
    return Figure(
        asked,
        theirs,
        "GB",
        (_command(model, more),),
        "memory.peak_allocated_bytes / GB",
        allowed,
        why,
    )


def _command(model: str, more: str) -> str:
    target = "" if model.startswith("bloom") else "--target-seq 3 "
    return _FP32.format(model=model, target=target, more=more)


def _offloaded(model: str, gpu: float, host: float) -> tuple[Figure, Figure]:
    commands = (_command(model, _OFFLOAD),)
    return (
        Figure("LoRA, ZeRO-3, all on the host: GPU", gpu, "GB", commands,
               "memory.peak_allocated_bytes / GB", 0.05,
               "DeepSpeed's live parameters and buckets are taken at their default sizes, tweets at 64 "
               "tokens", "memory.states.parameters == memory.states.gradients == 0"),
        Figure("the same: host", host, "GB", commands, _PROCESS, 0.25, _HOST,
               "abs(memory.host_bytes / (4 * model.parameters) - 1) < 0.02"),
    )  # fmt: skip


def _lora_count(model: str, targets: str, count: float) -> Figure:
    return Figure(
        f"{model}, r 8 on {targets.replace(_SIX, 'q, k, v, gate, up, down')}", count, "parameters",
        (f"estimate {model} --stack hf --peft lora --lora-targets {targets} --precision bf16",),
        "model.trainable_parameters",
    )  # fmt: skip


TUNING: Final = (
    Case("P1", "the file of ChatGLM-6B's LoRA, r 8 on query_key_value", "chatglm-lora", (
        Figure("parameters", 3_670_016.0, "parameters",
               (_GLM.format(seq=384, batch=4, gpu="v100-32gb", precision="fp16-mixed",
                            peft=_LORA.format("fp16")),), "model.trainable_parameters"),
        Figure("in fp32", 15.0, "MB",
               (_GLM.format(seq=384, batch=4, gpu="v100-32gb", precision="fp16-mixed",
                            peft=_LORA.format("fp16")),), "model.adapter_file_bytes / MB", 0.03,
               "the source rounds up: 14.68 MB, 14.0 MiB",
               "model.adapter_file_bytes == 4 * model.trainable_parameters"),
    ), ("test_adapters.py::test_published_counts_of_lora_parameters",)),
    Case("P2", "LoRA of ChatGLM-6B in fp16 on one V100-32G", "chatglm-tuning", tuple(
        _glm(f"batch {batch}", theirs, allowed, _LORA.format("fp16"), batch=batch, seq=seq)
        for seq, allowed in ((384, 0.2), (512, 0.3))
        for batch, theirs in ((16, 28.0), (8, 24.0), (4, 20.0))
    ), ("test_worked_tuning.py::test_p2_no_padded_length_gives_all_three",)),
    Case("P3", "the same beside packed weights, batch 4", "chatglm-tuning", tuple(
        _glm(name, theirs, allowed, _LORA.format(weights), seq=seq, precision="bf16")
        for seq, allowed in ((384, 0.25), (512, 0.35))
        for name, weights, theirs in (("int8", "int8", 10.0), ("int4 (as NF4)", "nf4", 8.0))
    ), ("test_worked_tuning.py::test_the_packed_base_of_chatglm_6b",)),
    Case("P4", "P-tuning v2 of ChatGLM-6B, 16 virtual tokens, batch 4", "chatglm-tuning", tuple(
        _glm(name, theirs, 0.3, _PREFIX.format(weights), seq=seq,
             precision="fp16-mixed" if weights == "fp16" else "bf16")
        for seq in (512, 768)
        for name, weights, theirs in (
            ("fp16", "fp16", 20.0), ("int8", "int8", 16.0), ("int4 (as NF4)", "nf4", 12.0))
    )),
    Case("P5", "freezing all of ChatGLM-6B but the MLPs of its last 3 layers, batch 4",
         "chatglm-tuning", (
        _glm("fp16", 24.0, 0.3, _FREEZE.format("fp16"), seq=512),
        _glm("int8", 12.0, None, _FREEZE.format("int8"), seq=512)._replace(
            why="12 GB leave no room for what trains: 402.7 M parameters of 16 bytes are 6.4 GB, and int8 "
                "matrices take no gradient, so those that train are in fp32",
            shown="model.trainable_parameters == 402714624 and any('packed matrices take no gradient' in "
                  "note for note in notes)"),
        _glm("int8, without what trains, by hand", 12.9, 0.25, _LORA.format("int8") + " --lora-rank 1",
             seq=512, precision="bf16")._replace(why="closed formulas; the 12 GB of the source can "
                                                     "only be of this case"),
    ), ("test_worked_tuning.py::test_p5_int8_leaves_no_room_for_what_trains",)),
    Case("P6", "parameters that LoRA adds to LLaMA, r 8", "belle", (
        _lora_count("llama-7b", _SIX, 17_891_328.0),
        _lora_count("llama-13b", _SIX, 28_016_640.0),
        _lora_count("llama-7b", "all-linear", 19_988_480.0),
        _lora_count("llama-13b", "all-linear", 31_293_440.0),
    ), ("test_adapters.py::test_published_counts_of_lora_parameters",)),
    Case("P7", "T0_3B in fp32 on one A100-80G, batch 8", "peft", (
        _fp32("full", "t0-3b", _FULL, 47.14, 0.15, "the tweets' padded length is taken as 64"),
        _fp32("LoRA", "t0-3b", _TUNED, 14.4, 0.15, "the tweets' padded length is taken as 64"),
        *_offloaded("t0-3b", 9.8, 17.8),
    ), ("test_worked_tuning.py::test_foreach_takes_a_copy_of_the_gradients_more",)),
    Case("P8", "mt0-xxl in fp32 on one A100-80G, batch 8", "peft", (
        Figure("full fits", "no", "", (_command("mt0-xxl", _FULL),), "fits",
               shown="sum(memory.states.values()) == 16 * 12921057280"),
        _fp32("LoRA", "mt0-xxl", _TUNED, 56.0, 0.15, "the tweets' padded length is taken as 64"),
        *_offloaded("mt0-xxl", 22.0, 52.0),
    ), ("test_worked_tuning.py::test_todays_deepspeed_moves_one_ranks_parts_without_buffers",)),
    Case("P9", "bloomz-7b1 in fp32 on one A100-80G, batch 8", "peft", (
        Figure("full fits", "no", "", (_command("bloom-7b1", _FULL),), "fits",
               shown="sum(memory.states.values()) == 16 * 7069016064"),
        _fp32("LoRA", "bloom-7b1", _TUNED, 32.0, 0.2,
              "weights 28.3 GB and fp32 logits 2.1 GB of 64 tokens a tweet; shorter ones need less"),
        *_offloaded("bloom-7b1", 18.1, 35.0),
    ), ("test_worked_tuning.py::test_todays_deepspeed_moves_one_ranks_parts_without_buffers",)),
)  # fmt: skip

"""Cases D: runs on several GPUs, their memory, exchanges and hours."""

from __future__ import annotations

from typing import Final

from benchmarks.worked.case import Case, Figure

_PROBE: Final = (
    "estimate benchmarks/worked/models/bloom-probe-{}.json --tp 8 {}--zero 1 --seq 2048 --micro-batch 1 "
    "--global-batch 2048 --recompute full --attention eager --precision bf16-mixed "
    "--stack megatron-deepspeed --optimizer-impl fused --dropout 0.1 --gpu a100-80gb"
)
_NLG: Final = (
    "estimate mt-nlg-530b --stack megatron --seq 2048 --tp 8 --pp 35 --dp {} --micro-batch 1 "
    "--grad-accum 35 --recompute full --gpu a100-80gb"
)
_ZERO_3: Final = (
    "estimate llama-65b --gpus 64 --zero 3 --stack deepspeed --seq 2048 --recompute full "
    "--cluster dgx-a100-80gb"
)
_LLAMA_65B: Final = (
    "train-time llama-65b --gpus 2048 --tp 8 --zero 1 --stack megatron --seq 2k --micro-batch 2 "
    "--global-batch 2048 --recompute selective --overlap-grad-reduce --overlap-param-gather "
    "--gpu a100-80gb --tokens 1.4T"
)
_PRETRAINED: Final = (
    "train-time {} --gpu a100-80gb --gpus 1024 --stack megatron --zero 1 --seq 2k --global-batch 2048 "
    "--tokens 1T"
)
_AT_51: Final = "train-time {} --gpu a100-80gb --gpus 64 --fsdp --tokens 1T --mfu 51"
_ALPACA: Final = (
    "train-time llama-7b --gpu a100-80gb --gpus 8 --samples 52k --epochs 3 --seq 512 {}"
)
_NO_EMBEDDING: Final = (
    "by hand the embedding is counted, 2 % of the parameters; it multiplies nothing"
)
_EMBEDDED: Final = (
    "abs(time.hours.expected / (1 - 32000 * 4096 / model.parameters) / {} - 1) < 0.01"
)
_BELLE: Final = (
    "estimate llama-7b --cluster dgx-a100-40gb --gpus 8 --seq {} --micro-batch 4 "
    "--recompute full {}"
)
_ON_HOST: Final = "--global-batch 32 --stack deepspeed --zero 3 --offload params --pin-memory"
_ON_GPU: Final = "--global-batch 32 --stack deepspeed --zero 3"
_LORA: Final = "--global-batch 128 --stack hf --peft lora"
_530B: Final = (
    "estimate mt-nlg-530b --stack megatron --tp 8 --layers 4 --seq 2048 "
    "--attention {} --recompute {} {}"
)
_GROUPS: Final = "estimate llama-7b --seq 2048 --precision bf16 {}"
_KEPT: Final = "memory.saved_for_backward_bytes"
_LAYOUTS: Final = "explain mt-nlg-530b --tp {} --tp-layout {} --micro-batch 8 --seq 2048"
_OFFLOAD: Final = (
    "estimate llama-7b --gpus 8 --cluster dgx-a100-80gb --seq 2048 --recompute full {}"
)


def _probe(layers: int, options: str, said: tuple[float, float, float]) -> tuple[Figure, ...]:
    """Memory of the busiest stage, seconds of a step, and TFLOP/s by the team's own counter."""
    commands = (_PROBE.format(layers, options),)
    memory, tflops, step = said
    busiest = "max(s.device_used_bytes for s in memory.stages)"
    counter = f"8 * 12 * {layers} * 14400**2 * 2048 * 2048 / time.step_s / setup.gpus / 1e12"
    why = "the time model's error; the source's figure lies in the band that is printed"
    inside = f"time.low_s <= {step} <= time.high_s"
    return (
        *(
            Figure(f"nvidia-smi of the busiest stage, {unit}", memory, unit, commands,
                   f"memory.device_used_bytes / {unit}", 0.15,
                   "printed to whole GB, of 10^9 or 2^30 is not said: both are shown",
                   f"memory.device_used_bytes == {busiest}")
            for unit in ("GB", "GiB")
        ),
        Figure("a step", step, "s", commands, "time.step_s", 0.2, why, inside),
        Figure("a GPU, 8 FLOPs a parameter of the blocks, as the team counts", tflops, "TFLOP/s",
               commands, counter, 0.2, why, inside),
    )  # fmt: skip


def _shorter(
    asked: str, theirs: float, words: tuple[str, str], why: str = "", shown: str = ""
) -> Figure:
    """What a switch leaves of the bytes a layer of the 530B model keeps."""
    return Figure(
        asked, theirs, "of it", words,
        "memory.saved_per_layer_bytes / second.memory.saved_per_layer_bytes", 0.01, why, shown,
    )  # fmt: skip


def _fewer(asked: str, options: str) -> Figure:
    return Figure(
        asked, "yes", "", (_GROUPS.format(options), _GROUPS.format("--attention eager")),
        f"{_KEPT} < second.{_KEPT}",
    )  # fmt: skip


def _of_layout(layout: str, asked: str, ranks: int, parameters: float) -> Figure:
    """Parameters of a rank over all. asked: the layout in the command, which lists them all."""
    row = f"[one for one in layouts if one.layout == '{layout}'][0]"
    return Figure(
        f"{layout.replace('d', 'D', 1)} on {ranks}: parameters of a GPU", parameters, "of all",
        (_LAYOUTS.format(ranks, asked),), f"{row}.parameters / holdings[-1].model_elements", 0.005,
    )  # fmt: skip


PARALLEL: Final = (
    Case("D1", "BLOOM team's 20B probe: 8 layers of h 14400, TP8, 8 x A100-80G", "bigscience",
         _probe(8, "", (68.0, 107.48, 777.0))),
    Case("D2", "the same with 80 layers, TP8 PP10, 80 GPUs", "bigscience",
         _probe(80, "--pp 10 ", (75.0, 97.82, 853.81))),
    Case("D3", "the same on 160 GPUs, DP2, ZeRO-1", "bigscience", (
        *_probe(80, "--pp 10 --dp 2 ", (53.0, 96.19, 434.14)),
        Figure("speed of a GPU over that of D2", 0.983, "times",
               (_PROBE.format(80, "--pp 10 --dp 2 "), _PROBE.format(80, "--pp 10 ")),
               "time.tokens_per_s_per_gpu / second.time.tokens_per_s_per_gpu", 0.05,
               "two copies exchange once in 1,024 micro-batches; the source states no spread",
               "setup.grad_accum_steps == 1024"),
    )),
    Case("D4", "MT-NLG 530B: TP8 x PP35", "mt-nlg", (
        *(
            Figure(f"nodes of 8 for {dp} replicas", nodes, "nodes", (_NLG.format(8),),
                   f"setup.tp * setup.pp * {dp} / 8")
            for dp, nodes in ((8, 280.0), (10, 350.0), (12, 420.0))
        ),
        Figure("states a GPU at 18 bytes a parameter", 34.1, "GB", (_NLG.format(8),),
               "sum(sum(s.states.values()) for s in memory.stages) / 35 / GB", 0.005),
        Figure("fits an A100-80G", "yes", "", (_NLG.format(8),), "fits"),
    )),
    Case("D5", "exchanges of a ZeRO-3 step of 65.0e9 parameters: 3 x the parameters", "training-notes", (
        Figure("a GPU sends, 1 byte a parameter", 195.0, "GB", (_ZERO_3,),
               "sum(e.bytes for e in time.exchanges) / 2 / model.parameters * 65.0", 0.002,
               "the engine's own are of bf16, two bytes: halved here"),
        Figure("2 bytes a parameter, as bf16 takes", 390.0, "GB", (_ZERO_3,),
               "sum(e.bytes for e in time.exchanges) / model.parameters * 65.0", 0.002,
               "the source's 195 GB are of one byte; gradients and weights of bf16 take two"),
        Figure("seconds on 10 Gb/s, 1 byte", 156.0, "s", (_ZERO_3,),
               "sum(e.bytes for e in time.exchanges) / 2 / model.parameters * 65.0e9 / (10e9 / 8)", 0.002),
        Figure("seconds on 10 Gb/s, 2 bytes", 312.0, "s", (_ZERO_3,),
               "sum(e.bytes for e in time.exchanges) / model.parameters * 65.0e9 / (10e9 / 8)", 0.002),
    ), ("test_traffic.py::test_d5_zero_3_moves_three_times_the_parameters",)),
    Case("D6", "LLaMA-65B on 2048 x A100-80G, 4 M tokens a step", "llama", (
        Figure("a GPU", 380.0, "tokens/s", (_LLAMA_65B,), "pace.tokens_per_s_per_gpu.expected", 0.2,
               "the layout is not published: TP8, ZeRO-1, attention recomputed, exchanges beside compute "
               "are taken"),
        Figure("1.4 T tokens, by the time model", 21.0, "days", (_LLAMA_65B,), "time.days.expected", 0.2,
               "the same layout"),
        Figure("1.4 T tokens at 380 tokens/s a GPU", 21.0, "days",
               (_LLAMA_65B + " --tokens-per-s-per-gpu 380",), "time.days.expected", 0.03,
               "20.8: the paper says about 21"),
        Figure("utilisation at 380 tokens/s, full square", 49.7, "%",
               (_LLAMA_65B + " --tokens-per-s-per-gpu 380",), "100 * pace.mfu", 0.01),
    ), ("test_worked_parallel.py::test_pure_zero_3_over_2048_gpus_waits_for_its_network",)),
    Case("D7", "LLaMA 7B and 13B, 1 T tokens: GPU-hours on A100-80G", "llama", tuple(
        figure
        for model, hours, layout, of_peak in (
            ("llama-7b", 82_432.0, "", 46.3), ("llama-13b", 135_168.0, " --tp 2 --micro-batch 2", 54.1))
        for figure in (
            Figure(f"{model}, by the time model", hours, "GPU-hours",
                   (_PRETRAINED.format(model) + layout,), "time.gpu_hours.expected",
                   (0.6 * hours, 1.15 * hours),
                   "the layout is not published: the plainest of Megatron's that fits is taken"),
            Figure(f"{model}, at 51 % utilisation", hours, "GPU-hours", (_AT_51.format(model),),
                   "time.gpu_hours.expected", 0.1,
                   f"the published hours are {of_peak:g} % as memcalc counts; one figure is given for both",
                   f"abs(51 * time.gpu_hours.expected / {hours} - {of_peak}) < 0.05"),
        )
    )),
    Case("D8", "Alpaca: 52 K samples x 3 epochs of a 7B on 8 x A100-80G", "alpaca", (
        Figure("at 512 tokens a sample, by the time model", 3.0, "h",
               (_ALPACA.format("--fsdp --micro-batch 4 --grad-accum 4 --stack hf"),),
               "time.hours.expected", (0.6, 1.6),
               "3 h are 12 % utilisation at 512 tokens, the limit; samples are shorter still, and the "
               "hours may hold more than steps", "time.hours.expected < 3 and pace.mfu > 0.3"),
        Figure("at a given utilisation of 12.2 %", 3.0, "h", (_ALPACA.format("--mfu 12.2"),),
               "time.hours.expected", 0.03, _NO_EMBEDDING, _EMBEDDED.format(3.0)),
        Figure("at 50 %, by hand", 0.73, "h", (_ALPACA.format("--mfu 50"),), "time.hours.expected", 0.03,
               _NO_EMBEDDING, _EMBEDDED.format(0.73)),
    )),
    Case("D9", "LLaMA-7B, 2 M samples on 8 x A100-40G: full with offload and LoRA", "belle", tuple(
        figure
        for tokens in (250, 300)
        for figure in (
            Figure(f"full, {tokens} tokens, 62,500 steps", 31.0, "h", (_BELLE.format(tokens, _ON_HOST),),
                   "62500 * time.step_s / 3600", 0.2,
                   "tokens a sample are not published; most of it is the step on the host, 42 bytes a "
                   "parameter at an assumed 25 GB/s of its memory a GPU: 28 bytes would make 26.8 to 28.3 h",
                   "time.offload_s > 0.5 * time.step_s"),
            Figure(f"LoRA, {tokens} tokens, 15,625 steps", 7.0, "h", (_BELLE.format(tokens, _LORA),),
                   "15625 * time.step_s / 3600", 0.2, "tokens a sample are not published"),
            Figure(f"ratio, {tokens} tokens", 4.4, "times",
                   (_BELLE.format(tokens, _ON_HOST), _BELLE.format(tokens, _LORA)),
                   "4 * time.step_s / second.time.step_s", (3.0, 6.0),
                   "said to be 3 to 5 times; the hours do not grow with samples"),
            Figure(f"ratio without offload, {tokens} tokens", 4.4, "times",
                   (_BELLE.format(tokens, _ON_GPU), _BELLE.format(tokens, _LORA)),
                   "4 * time.step_s / second.time.step_s", None,
                   "the ratio of FLOPs is 1.33: the rest is the step on the host"),
        )
    ), ("test_offload_time.py::test_d9_full_fine_tuning_with_offload_against_lora",)),
    Case("D10", "compute-optimal data: 20 tokens a parameter", "chinchilla", tuple(
        Figure(f"{asked} parameters", tokens, "billion tokens",
               ("train-time chinchilla-70b --tokens 1.4T --gpu a100-80gb --gpus 64 --fsdp --mfu 50",),
               f"compute_optimal.tokens / compute_optimal.parameters * {asked}")
        for asked, tokens in ((70, 1400.0), (10, 200.0))
    ), ("test_train_time.py::test_d10_twenty_tokens_a_parameter",)),
    Case("D11", "what cuts the memory of activations", "korthikanti", (
        _shorter("selective recomputation and sequence parallelism, 530B: (34/t) / (10 + 24/t + 5as/ht)",
                 4.25 / 21, (_530B.format("eager", "selective", "--sp"),
                             _530B.format("eager", "none", "--no-sp"))),
        _shorter("sequence parallelism alone: (34/t + 5as/ht) / (10 + 24/t + 5as/ht)", 12.25 / 21,
                 (_530B.format("eager", "none", "--sp"), _530B.format("eager", "none", "--no-sp"))),
        _shorter("selective alone: (10 + 24/t) / (10 + 24/t + 5as/ht)", 13 / 21,
                 (_530B.format("eager", "selective", "--no-sp"),
                  _530B.format("eager", "none", "--no-sp"))),
        _fewer("full recomputation keeps less", "--attention eager --recompute full"),
        _fewer("FlashAttention keeps less", "--attention flash"),
        _fewer("a fused loss keeps less", "--attention eager --loss fused"),
        Figure("under eager attention: kept over kept", 1.0, "times",
               (_GROUPS.format("--attention eager --set model.num_key_value_heads=8"),
                _GROUPS.format("--attention eager")), f"{_KEPT} / second.{_KEPT}", 0.0,
               "eager code repeats keys and values for every head first, which spares nothing"),
        Figure("8 of 32 heads for keys and values keep less", "yes", "",
               (_GROUPS.format("--set model.num_key_value_heads=8"), _GROUPS.format("")),
               f"{_KEPT} < second.{_KEPT}"),
    )),
    Case("D12", "tensor parallelism in 1D, 2D, 2.5D and 3D", "colossal", (
        _of_layout("1d", "3d", 8, 1 / 8),
        _of_layout("2d", "2d", 16, 1 / 16),
        _of_layout("2.5d, depth 2", "3d", 8, 1 / 4),
        _of_layout("3d", "3d", 8, 1 / 8),
        Figure("1D on 8: a GPU sends in a block's forward, 2 x 2 (P - 1) / P x b s h", 2 * 2 * 7 / 8
               * 8 * 2048 * 20480 * 2 / 1e9, "GB", (_LAYOUTS.format(8, "3d"),),
               "layouts[0].sent_forward_bytes / GB"),
    ), ("tests/unit/test_tensor_layouts.py",)),
    Case("D13", "states on the host: 16-bit parameters, fp32 gradients, master copies, moments", "offload", (
        Figure("DeepSpeed, ZeRO-3, optimizer on the host: host, a GPU", 18 / 8, "bytes a parameter",
               (_OFFLOAD.format("--zero 3 --stack deepspeed --offload optimizer"),),
               "memory.host_bytes / model.parameters", 0.02,
               "12 of AdamW's, 4 of fp32 gradients, 2 on the way"),
        Figure("the same: left on the GPU of the states", 2 / 8, "bytes a parameter",
               (_OFFLOAD.format("--zero 3 --stack deepspeed --offload optimizer"),),
               "memory.states.parameters / model.parameters", 0.02,
               shown="memory.states.optimizer == memory.states.master == 0"),
        Figure("parameters too: left on the GPU", 0.0, "bytes",
               (_OFFLOAD.format("--zero 3 --stack deepspeed --offload params"),),
               "sum(memory.states.values())"),
        Figure("PyTorch's CPUOffloadPolicy: host, a GPU", 16 / 8, "bytes a parameter",
               (_OFFLOAD.format("--fsdp --offload params"),),
               "(memory.host_bytes - memory.host.rounding_bytes) / model.parameters", 0.02,
               "4 of parameters, 4 of gradients, 8 of AdamW's; PyTorch's pinned memory rounds each up to "
               "a power of two on top", "memory.host.rounding_bytes > 0"),
        Figure("it takes time over PCIe", "yes", "",
               (_OFFLOAD.format("--fsdp --offload params"), _OFFLOAD.format("--fsdp")),
               "time.offload_s > 0 and time.step_s > second.time.step_s"),
    ), ("tests/unit/test_offload.py", "tests/unit/test_offload_time.py")),
)  # fmt: skip

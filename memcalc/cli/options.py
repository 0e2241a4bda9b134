"""The one table of options: every option of the command line is a row, whichever commands take it.

Decides names, flags, kinds, help panels, the field of a setup that a row sets.
The parser, the help, the completion and the run files are all made from it.
"""

from __future__ import annotations

from typing import Any, Final

from memcalc.cli.chart_options import CHART_OPTIONS
from memcalc.cli.feedback_options import FEEDBACK_OPTIONS
from memcalc.cli.interop_options import INTEROP_OPTIONS
from memcalc.cli.option import (
    ACCURACY,
    DEVICE,
    ESTIMATE,
    EVERY,
    LAYOUT,
    MEASURE,
    ON_DEVICE,
    PANELS,
    RANKS,
    SERVED,
    Option,
)
from memcalc.cli.peft_options import PEFT_OPTIONS
from memcalc.cli.phase_options import PHASE_OPTIONS
from memcalc.cli.run_options import RUN_OPTIONS
from memcalc.cli.search_options import SEARCH_OPTIONS
from memcalc.cli.serving_options import SERVING_OPTIONS
from memcalc.inputs.parallel import (
    CP_METHODS,
    OFFLOAD_DEVICES,
    OFFLOADS,
    SCHEDULES,
    TP_LAYOUTS,
)
from memcalc.inputs.training_names import (
    ATTENTIONS,
    LOSSES,
    OPTIMIZER_IMPLS,
    OPTIMIZERS,
    PRECISIONS,
)

__all__ = ["BY_FLAG", "BY_NAME", "COMMANDS", "MEASURE", "OPTIONS", "PANELS",
           "POSITIONALS", "Option", "options_of"]  # fmt: skip

_NOW: Final = (
    Option("layers", "count", "Model", "Only the first N blocks", "all", "num_layers",
           commands=SERVED),
    Option("imbalance", "number", "Model",
           "Token rows of the rank whose experts receive most, over the mean", "1", "imbalance",
           commands=SERVED),
    Option("capacity-factor", "number", "Model",
           "Rows an expert takes at most, over the mean; the rest is dropped (stack megatron)",
           "none are dropped", "capacity_factor", commands=LAYOUT),
    Option("pad-to-capacity", "flag", "Model", "Every expert takes as many rows as its capacity", "",
           "pad_to_capacity", commands=LAYOUT),
    Option("set", "many", "Model",
           "Last word on one field: training.*, kernels.*, stack.* or model.*, as "
           "training.loss_chunks=4; may be repeated"),
    Option("seq", "count", "Training", "Tokens of a sequence; 8k = 8192",
           "min(2048, the model's maximum)", "seq_len"),
    Option("target-seq", "count", "Training", "Tokens an encoder-decoder's decoder sees (T5)",
           "seq", "target_seq_len"),
    Option("micro-batch", "count", "Training", "Sequences of one forward", "1", "micro_batch_size"),
    Option("grad-accum", "count", "Training", "Micro-batches of an optimizer step", "1",
           "grad_accum_steps"),
    Option("global-batch", "count", "Training", "Sequences of an optimizer step",
           "micro-batch x grad-accum", "global_batch"),
    Option("precision", "text", "Training", "Dtypes of parameters and matmuls", "bf16-mixed",
           "precision", choices=PRECISIONS),
    Option("optimizer", "text", "Training", "Optimizer", "adamw", "optimizer",
           choices=OPTIMIZERS),
    Option("optimizer-impl", "text", "Training", "How torch.optim steps", "foreach",
           "optimizer_impl", choices=OPTIMIZER_IMPLS),
    Option("optimizer-dtype", "text", "Training", "Dtype of optimizer states",
           "the parameters' own", "optimizer_dtype", choices=("fp32", "bf16")),
    Option("optimizer-in-backward", "flag", "Training",
           "Step each parameter as soon as its gradient is there", "", "optimizer_in_backward"),
    Option("no-set-to-none", "flag", "Training", "Gradients stay allocated between steps", "",
           "set_to_none"),
    Option("grad-clip", "flag", "Training", "Clip gradients by their norm", "", "grad_clip"),
    Option("dropout", "number", "Training", "Dropout rate", "the model's", "dropout"),
    Option("recompute", "recompute", "Training",
           "What backward computes again: none, selective, sac, sac-attention, full, full:N "
           "(the first N blocks)", "none", "recompute"),
    Option("recompute-modules", "names", "Training",
           "What selective means on stack megatron, as moe_act,layernorm", "core_attn",
           "recompute_modules", commands=LAYOUT),
    Option("attention", "text", "Training", "Attention kernel", "flash", "attention",
           choices=ATTENTIONS, commands=SERVED),
    Option("loss", "text", "Training", "Loss code", "the stack's", "loss",
           choices=LOSSES),
    Option("stack", "name", "Training", "Whose training code runs: memcalc list stacks, or my.toml", "torch",
           "stack"),
    Option("compile", "flag", "Training", "torch.compile on each block", "",
           "compile"),
    Option("gpu", "name", "Hardware", "GPU, in any usual spelling; without one no verdict", "none",
           commands=DEVICE),
    Option("gpu-memory", "memory", "Hardware", "Memory the driver gives, as 79.2GiB",
           "the profile's", commands=DEVICE),
    Option("cluster", "name", "Hardware", "Nodes, links and hosts of the GPUs; names the GPU too",
           "nodes of 8 on NVSwitch", commands=DEVICE),
    Option("calibration", "name", "Hardware",
           "Rates of kernels and links: default, auto (measured ones of the GPU if there are any), "
           "a name of `memcalc list calibrations`, or a file", "default; auto for --gpu local",
           commands=(*DEVICE, "verify")),
    Option("reserve", "memory", "Hardware", "Memory to leave free", "0GiB", commands=DEVICE),
    Option("device", "text", "Measuring", "cuda, cuda:1 or cpu; infer: gpu or cpu",
           "cuda where there is one", commands=(*ON_DEVICE, "infer", "chart")),
    Option("steps", "count", "Measuring", "Timed optimizer steps", "20; 5 on a CPU",
           commands=MEASURE),
    Option("warmup", "count", "Measuring", "Steps before them", "10; 2 on a CPU",
           commands=MEASURE),
    Option("threads", "count", "Measuring", "CPU threads", "torch's", commands=ON_DEVICE),
    Option("reference", "number", "Measuring",
           "Tokens/s of a run to hold the throughput against", "none", commands=MEASURE),
    Option("profile", "flag", "Measuring",
           "Profile one more step: shares of tensor-core kernels, idle time, communication",
           commands=("measure",)),
    Option("records", "file", "Measuring", "Append the record there (JSON lines)",
           "records.jsonl in the user's data directory", commands=MEASURE),
    Option("no-record", "flag", "Measuring", "Keep no record", commands=MEASURE),
    Option("contribute", "file", "Measuring",
           "Also run a few models and write an empty folder full: calibration, records, environment, "
           "without names of host, user or folders", "none", commands=("calibrate",)),
    Option("rows", "file", "Rows", "Measured runs to price (CSV), columns as the published ones",
           "the published runs", commands=ACCURACY),
    Option("source", "text", "Rows", "Only sources whose name holds this", "all", commands=ACCURACY),
    Option("confidence", "text", "Rows", "Only rows of this confidence", "all", commands=ACCURACY,
           choices=("high", "med", "low")),
    Option("priceable", "text", "Rows", "Only rows whose columns hold all that decides the figures",
           "all", commands=ACCURACY, choices=("yes", "partly", "no")),
    Option("memory", "flag", "Rows", "Only figures of memory", "", commands=ACCURACY),
    Option("throughput", "flag", "Rows", "Only figures of speed", "", commands=ACCURACY),
    Option("report", "flag", "Output",
           "Write REPORT.md and its pictures to --out DIR: every class, beside the textbook",
           commands=("accuracy",)),
    Option("short", "flag", "Output", "Of --report, a few of the published rows",
           commands=("accuracy",)),
    Option("config", "file", "Output", "Read options from a run file (TOML)", commands=SERVED),
    Option("save", "file", "Output", "Write the options given to a run file", commands=SERVED),
    Option("json", "flag", "Output", "One JSON object on stdout", commands=EVERY),
    Option("csv", "flag", "Output", "CSV with a header: a row a setup (accuracy: a row a figure)",
           commands=("estimate", "accuracy", "compare", "chart", "search")),
    Option("quiet", "flag", "Output", "One line, no notes", commands=EVERY, flags=("-q",)),
    Option("ops", "flag", "Output",
           "Add the ledger, an op a row (explain: what each op allocates and frees)",
           commands=("estimate", "explain", *MEASURE)),
    Option("timeline", "file", "Output",
           "Write every allocation and release of a step (.csv or .json)", commands=ESTIMATE),
    Option("chart", "file", "Output",
           "Draw memory over the step, predicted and measured; search: the front of memory and speed "
           "(.png, .svg or .pdf)",
           commands=("verify", "search")),
    Option("out", "file", "Output",
           "Write the result there, as the ending says: .json; chart: .png .svg .pdf .csv; compare: "
           ".csv .md; report: .html; else text", commands=EVERY, flags=("-o",)),
    Option("debug", "flag", "Output", "Show the traceback of an error", commands=EVERY),
)  # fmt: skip


def _split(name: str, kind: str, said: str, default: str = "1", **more: Any) -> Option:
    """A row of the layout: how several GPUs divide a model."""
    field = name.removeprefix("no-").replace("-", "_")
    return Option(name, kind, "Parallelism", said, default, commands=more.pop("commands", LAYOUT),
                  parallel=field, **more)  # fmt: skip


_PARALLEL: Final = (
    _split("gpus", "count", "GPUs in all; those the degrees leave are dp", "tp x pp x cp x dp",
           commands=(*LAYOUT, "infer")),
    _split("gpus-per-node", "count", "GPUs of one node", "the cluster's or GPU's",
           commands=(*LAYOUT, "infer")),
    _split("tp", "count", "Ranks a layer is split over", commands=(*RANKS, "infer")),
    _split("sp", "flag", "Sequence parallelism beside tp", "the stack's", commands=RANKS),
    _split("no-sp", "flag", "No sequence parallelism", ""),
    _split("pp", "count", "Pipeline stages", commands=(*RANKS, "infer")),
    _split("vpp", "count", "Chunks of the model a stage holds (interleaved)"),
    _split("schedule", "text", "Pipeline schedule", "1f1b", choices=SCHEDULES, commands=RANKS),
    _split("stage-layers", "counts", "Blocks of each stage, as 7,8,8,7", "evenly",
           commands=(*LAYOUT, "infer")),
    _split("cp", "count", "Ranks a sequence is split over", commands=RANKS),
    _split("cp-method", "text", "How: ring or ulysses", "ring", choices=CP_METHODS, commands=RANKS),
    _split("ep", "count", "Ranks the experts are spread over", commands=(*RANKS, "infer")),
    _split("etp", "count", "Ranks one expert is split over", "the stack's"),
    _split("dp", "count", "Ranks that split the batch", "what gpus leaves",
           commands=(*RANKS, "infer")),
    _split("zero", "stage",
           "Sharded over dp: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too", "0",
           choices=("0", "1", "2", "3")),
    _split("fsdp", "flag", "Stage 3 as PyTorch's fully_shard (FSDP2)", "", commands=RANKS),
    _split("shard", "count", "Ranks of one sharding group (HSDP)", "all of dp", commands=RANKS),
    _split("reshard", "reshard", "Free parameters after a block's forward: true, false or ranks",
           "true", commands=RANKS),
    _split("offload", "text", "What lives on the host", "none", choices=OFFLOADS),
    _split("offload-device", "text", "Where: host memory or its disks", "cpu",
           choices=OFFLOAD_DEVICES),
    _split("pin-memory", "flag", "Host memory is page-locked", "the stack's"),
    _split("no-pin-memory", "flag", "Host memory is pageable", ""),
    _split("overlap-grad-reduce", "flag", "Gradients are summed beside backward (Megatron)",
           "the stack's"),
    _split("overlap-param-gather", "flag", "Parameters are gathered beside forward (Megatron)",
           "the stack's"),
    _split("tp-layout", "text", "Tensor layout: 1d, or Colossal-AI's 2d, 2.5d, 3d", "1d",
           choices=TP_LAYOUTS),
)  # fmt: skip


OPTIONS: Final = (
    *_NOW, *_PARALLEL, *PEFT_OPTIONS, *FEEDBACK_OPTIONS, *PHASE_OPTIONS, *SERVING_OPTIONS,
    *CHART_OPTIONS, *RUN_OPTIONS, *INTEROP_OPTIONS, *SEARCH_OPTIONS,
)  # fmt: skip
BY_NAME: Final = {option.name: option for option in OPTIONS}
BY_FLAG: Final = {flag: option for option in OPTIONS for flag in (option.flag, *option.flags)}

#: Commands of this version: name -> (positional arguments as shown, what it does).
COMMANDS: Final = {
    "estimate": ("MODEL", "Memory and time of a training step: what it needs, if it fits"),
    "explain": ("MODEL", "The ledger behind an estimate, with every formula"),
    "infer": ("MODEL", "Serving: memory, the batch and context that fit, latency, tokens/s"),
    "solve": ("WHAT MODEL", "The extreme value that fits: micro-batch, seq, gpus, batch, ..."),
    "search": ("MODEL", "The best setups on a cluster, of every layout there is"),
    "advise": ("MODEL", "Ranked changes that make a setup fit, or faster"),
    "compare": ("[MODEL]", "Several models, GPUs and setups in a table"),
    "chart": ("KIND [MODEL]", "A picture: breakdown, timeline, sweep, roofline, pipeline, ..."),
    "report": ("MODEL", "One HTML file of a setup: verdict, charts, ledger"),
    "export": ("MODEL", "Settings of DeepSpeed, accelerate, torchtitan or Megatron-LM"),
    "import": ("FILE", "The estimate of such settings: a file, or arguments in quotes"),
    "verify": ("MODEL", "Run real steps and hold the estimate against them"),
    "measure": ("MODEL", "Run real steps: memory, tokens/s, utilisation"),
    "calibrate": ("", "Micro-benchmarks of this device, into a calibration profile"),
    "train-time": ("MODEL", "How long a training run takes: days, GPU-hours, energy, cost"),
    "mfu": ("[MODEL]", "How much of a GPU a run uses, by each method and convention"),
    "accuracy": ("", "Price measured runs: predicted beside measured"),
    "list": ("[KIND]", "Known models, gpus, stacks, clusters, weights, engines, ..."),
    "show": ("[KIND] NAME", "Every figure of one model, GPU, cluster or stack, with its source"),
    "doctor": ("", "What is installed, which device, which rates would be used"),
    "diff": ("A B", "What moved between two runs: run files, results, quoted commands"),
}  # fmt: skip
#: (fewest, most) positional arguments.
POSITIONALS: Final = {
    "estimate": (1, 1), "infer": (1, 1), "explain": (1, 1), "verify": (1, 1), "measure": (1, 1),
    "train-time": (1, 1), "mfu": (0, 1), "calibrate": (0, 0), "accuracy": (0, 0), "list": (0, 1),
    "show": (1, 2), "doctor": (0, 0), "diff": (2, 2), "compare": (0, 1), "chart": (1, 2),
    "report": (1, 1), "export": (1, 1), "import": (1, 1), "solve": (2, 2), "advise": (1, 1),
    "search": (1, 1),
}  # fmt: skip


def options_of(command: str) -> list[Option]:
    """The options a command takes."""
    return [option for option in OPTIONS if command in option.commands]

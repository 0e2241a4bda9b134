"""Cases U: utilisation, and networks that decide."""

from __future__ import annotations

from typing import Final

from benchmarks.worked.case import Case, Figure

_SHARDED: Final = (
    "estimate llama-7b --cluster {} --gpus 8 --zero 3 --stack deepspeed --micro-batch 1 --seq 2048 "
    "--recompute full"
)
_NODES: Final = (
    "estimate llama-65b --cluster benchmarks/worked/models/nodes-{}.toml --gpus 64 --zero 3 "
    "--stack deepspeed --micro-batch 4 --seq 2048 --recompute full"
)
_BOTH: Final = "time.exposed_communication_s + time.hidden_communication_s"

UTILISATION: Final = (
    Case("U1", "the ratio of FLOPs: 100 TFLOP/s measured on an A100", "memory-notes", (
        Figure("utilisation of 312 TFLOP/s", 32.05, "%", ("mfu --tflops 100 --gpu a100-80gb",),
               "100 * flops_ratio.ratio", 0.0002),
    ), ("tests/cli/test_mfu.py::test_u1_a_hundred_teraflops_on_an_a100",)),
    Case("U2", "the ratio of throughputs: 3 examples/s of 2048 tokens on 4 GPUs, 3300 published",
         "memory-notes", (
        Figure("tokens/s of a GPU", 1536.0, "tokens/s",
               ("mfu --samples-per-s 3 --gpus 4 --seq 2048 --reference-per-gpu 3300",),
               "throughput.tokens_per_s_per_gpu"),
        Figure("utilisation", 46.54, "%",
               ("mfu --samples-per-s 3 --gpus 4 --seq 2048 --reference-per-gpu 3300",),
               "100 * throughput.ratio", 0.0002, "46.545...: the source cuts where memcalc rounds",
               "throughput.ratio == 1536 / 3300"),
    ), ("tests/cli/test_mfu.py::test_u2_three_examples_a_second_on_four_gpus_against_a_published_run",)),
    Case("U3", "the profiler's method: share of time in tensor-core kernels", "memory-notes", (
        Figure("memcalc says how it is measured", "yes", "", ("mfu --tflops 100 --gpu a100-80gb",),
               "'memcalc measure MODEL --profile' in profile_method",
               why="it needs a GPU and was not run on one; the reading of a trace is tested on a recorded "
                   "one"),
    ), ("tests/harness/test_utilisation.py::test_each_method_has_its_own_denominator",
        "tests/harness/test_kernel_trace.py")),
    Case("U4", "ZeRO-3 without NVLink: gathering takes longer than computing", "memory-notes", (
        Figure("over PCIe exchanges take longer than compute", "yes", "",
               (_SHARDED.format("benchmarks/worked/models/pcie.toml"),), f"{_BOTH} > time.compute_s"),
        Figure("over NVLink", "no", "", (_SHARDED.format("dgx-a100-80gb"),),
               f"{_BOTH} > time.compute_s"),
        Figure("the step is bound by (links count as network)", "network", "",
               (_SHARDED.format("benchmarks/worked/models/pcie.toml"),), "time.bound"),
    ), ("test_network_bound.py::test_d5_u4_zero_3_over_a_slow_network_waits_for_it",)),
    Case("U5", "several nodes: 64 Gb/s of network and 800 Gb/s", "training-notes", (
        Figure("64 Gb/s a node: bound by", "network", "", (_NODES.format("64"),), "time.bound"),
        Figure("800 Gb/s a node: bound by", "compute", "", (_NODES.format("800"),), "time.bound"),
        Figure("share of the step that 64 Gb/s take", (0.5, 1.0), "of it", (_NODES.format("64"),),
               "time.exposed_communication_s / time.step_s", (0.3, 1.0)),
        Figure("share of the step that 800 Gb/s take", (0.0, 0.1), "of it", (_NODES.format("800"),),
               "time.exposed_communication_s / time.step_s", (0.0, 0.1)),
    ), ("test_network_bound.py::test_u5_where_a_network_ceases_to_limit",)),
)  # fmt: skip

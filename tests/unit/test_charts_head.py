"""What a chart says of its setups: shared words in the subtitle, what differs in the labels."""

from __future__ import annotations

from memcalc.inputs.parallel import ParallelPlan
from memcalc.planning.charts.head import head, label_of, model_on_gpu, setup_line
from tests.unit.charts_support import point, refused


def test_one_setup_is_said_whole() -> None:
    one = [point()]
    assert model_on_gpu(one) == "gpt2 on h100-80gb"
    assert (
        setup_line(one) == "seq 64, micro-batch 1, bf16-mixed, adamw, recompute none, stack torch"
    )
    found = head("breakdown", "a title", "a line", one)
    assert found["schema"] == 1 and found["title"] == "a title"
    assert found["source"].endswith("; rates default-hopper; stack torch")


def test_what_differs_is_left_to_the_labels() -> None:
    several = [
        point({"gpu": "h100", "micro-batch": "1"}),
        point({"gpu": "h200", "micro-batch": "2"}, gpu="h200", micro_batch_size=2),
        refused({"tp": "7"}, "no"),
    ]
    assert model_on_gpu(several) == "gpt2 on h100-80gb, h200-141gb"
    assert "micro-batch" not in setup_line(several) and "seq 64" in setup_line(several)
    assert [label_of(one) for one in several] == [
        "h100, micro-batch 1",
        "h200, micro-batch 2",
        "tp 7",
    ]


def test_several_gpus_are_counted_and_their_layout_is_said() -> None:
    one = [point(parallel=ParallelPlan(gpus=8, fsdp=True))]
    assert model_on_gpu(one) == "gpt2 on 8 x h100-80gb"
    assert setup_line(one).endswith("; 8 GPUs: dp 8, fsdp")
    assert model_on_gpu([point(gpu=None)]) == "gpt2"
    assert setup_line([refused({}, "no")]) == "" and model_on_gpu([refused({}, "no")]) == ""

"""What tests of search share: wishes for small spaces, and a kept setup as `estimate` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from memcalc import estimate
from memcalc.cli.variant_cases import Maker
from memcalc.engine.device_side import device_of, with_modules
from memcalc.engine.results import Estimate
from memcalc.inputs.models import load_model
from memcalc.inputs.stacks import load_stack
from memcalc.inputs.training import TrainingSetup, truncate
from memcalc.planning.cases import Case
from memcalc.planning.search.megatron_search import Megatron
from memcalc.planning.search.wishes import Wishes


def wishes_of(model: str, gpus: int, batch: int, **more: Any) -> Wishes:
    """Wishes on a GPU, h100-80gb unless stated; layers truncates the model, seq is its sequence."""
    layers = more.pop("layers", None)
    gpu = more.pop("gpu", "h100-80gb")
    seq = more.pop("seq", 2048)
    setup = TrainingSetup(
        stack="megatron", seq_len=seq, num_layers=layers, **more.pop("training", {})
    )
    config = load_model(model)
    device = with_modules(device_of(gpu, more.pop("memory", None)), load_stack("megatron"))
    return Wishes(
        config=config if layers is None else truncate(config, layers)[0], setup=setup,
        device=device, gpus=gpus, batch=batch, **more,
    )  # fmt: skip


def case_maker(model: str, wishes: Wishes, gpu: str = "h100-80gb") -> Any:
    """From a setup's options to its case, as the command line has it."""
    maker, setup = Maker(), wishes.setup
    base: dict[str, Any] = {
        "model": model, "gpu": gpu, "seq": str(setup.seq_len), "global-batch": str(wishes.batch),
    }  # fmt: skip
    if setup.num_layers is not None:
        base["layers"] = str(setup.num_layers)
    if setup.attention != "flash":
        base["attention"] = setup.attention
    if setup.grad_clip:
        base["grad-clip"] = True

    def case_of(options: Mapping[str, str | bool]) -> Any:
        made = maker.case({}, {**base, **options})
        if isinstance(made, Case):
            return made._replace(
                device=made.device._replace(usable_bytes=wishes.device.usable_bytes)
            )
        return made

    return case_of


def interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after three blocks of setups."""
    whole, added = Megatron._add, list[Any]()

    def stop(self: Megatron, *block: Any) -> None:
        added.append(block)
        if len(added) > 3:
            raise KeyboardInterrupt
        whole(self, *block)

    monkeypatch.setattr(Megatron, "_add", stop)


def priced(case: Case, allocator: bool = False) -> Estimate:
    """The scalar estimate of a case."""
    return estimate(
        case.config, case.setup, parallel=case.parallel, gpu=case.device, kernels=case.kernels,
        allocator=allocator,
    )  # fmt: skip

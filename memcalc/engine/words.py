"""A resolved setup in words: the layout of several GPUs, and what training was asked for.

Both take the `setup` object of an estimate's JSON form. Checked by: cli/test_layouts.py,
unit/test_charts_house.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def layout_line(setup: Mapping[str, Any]) -> str:
    """`16 GPUs: tp 2, dp 8, fsdp, reshard 2`; nothing for one GPU that holds all."""
    names = ("tp", "pp", "cp", "dp")
    degrees = [f"{name} {setup[name]}" for name in names if (setup[name] or 1) > 1]
    if setup["sp"]:
        degrees[0] += " with sp"
    sharding = "fsdp" if setup["fsdp"] else f"zero {setup['zero']}" if setup["zero"] else ""
    if sharding and setup["shard"]:
        sharding += f" over {setup['shard']}"
    if setup["reshard"] is not None:
        sharding += f", reshard {str(setup['reshard']).lower()}"
    stages = [setup["schedule"]] if setup["pp"] > 1 else []
    if setup["vpp"] > 1:
        stages.append(f"{setup['vpp']} chunks a stage")
    more = [f"ep {setup['ep']}"] if setup["ep"] > 1 else []
    more += [] if setup["etp"] is None else [f"etp {setup['etp']}"]
    if setup["cp"] > 1:
        more.append(f"cp by {setup['cp_method']}")
    if setup["tp_layout"] != "1d":
        more.append(f"tensors in {setup['tp_layout']}")
    if setup["offload"] != "none":
        to = " to nvme" if setup["offload_device"] == "nvme" else ""
        more.append(f"offload {setup['offload']}{to}")
    if setup["cluster"]:
        more.append(f"cluster {setup['cluster']}")
    words = [*degrees, *more, *stages, *([sharding] if sharding else [])]
    count = setup["gpus"] or 1
    return f"{count} GPU{'s' * (count > 1)}: {', '.join(words)}" if words else ""


def peft_words(setup: Mapping[str, Any]) -> str:
    """`lora rank 8 on q_proj v_proj, in fp32` of a setup's fine-tuning; empty where all trains."""
    peft, adapter = setup.get("peft"), setup["kernels"].get("adapter")
    if peft is None or adapter is None:
        return ""
    if peft["method"] == "freeze":
        parts = f", only {' '.join(adapter['parts'])}" if adapter["parts"] else ""
        return f"freeze: the last {peft['layers']} layers train{parts}"
    if not adapter["targets"]:
        return _untargeted(peft, setup["dims"])
    drops = f", dropout {peft['dropout']:g}" if peft["dropout"] else ""
    rank = f" rank {setup['dims']['r_A']}" if "r_A" in setup["dims"] else ""
    base = f", weights in {peft['weights']}" if peft["weights"] else ""
    targets = " ".join(adapter["targets"])
    return f"{peft['method']}{rank} on {targets}, in {adapter['dtype']}{drops}{base}"


def _untargeted(peft: Mapping[str, Any], dims: Mapping[str, int]) -> str:
    """`prefix, 20 virtual tokens` of a method that names no linears."""
    base = f", weights in {peft['weights']}" if peft["weights"] else ""
    if "n_b" in dims:
        return f"{peft['kind'] or 'houlsby'} adapters of width {dims['n_b']}{base}"
    if "v_t" not in dims:
        return f"{peft['method']}{base}"
    inside = f", an MLP of width {dims['e_p']}" if "e_p" in dims else ""
    return f"{peft['method']}, {dims['v_t']} virtual tokens{inside}{base}"


def setup_words(setup: Mapping[str, Any]) -> list[str]:
    """`seq 2048`, `micro-batch 1`, ... : what a title's second line says of a setup, in its order."""
    recompute = setup["recompute"]
    if setup.get("recompute_layers"):
        recompute = f"{recompute}:{setup['recompute_layers']}"
    said = [f"seq {setup['seq_len']}", f"micro-batch {setup['micro_batch_size']}"]
    if setup["grad_accum_steps"] > 1:
        said.append(f"grad-accum {setup['grad_accum_steps']}")
    optimizer = setup["optimizer"]
    if setup["optimizer_impl"] in ("fused", "loop"):  # else as most code has it
        optimizer = f"{optimizer} ({setup['optimizer_impl']})"
    said += [setup["precision"], optimizer, f"recompute {recompute}"]
    if setup.get("compile") and setup["stack"] != "torch-compile":
        said.append("compiled")
    said += [words] if (words := peft_words(setup)) else []
    return [*said, f"stack {setup['stack']}"]

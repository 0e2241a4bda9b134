"""Serving as text: memory and what it is made of, the limits, latency and rates, the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memcalc.engine.serving.serving_results import ServingEstimate, ServingTime
from memcalc.output.console import Page
from memcalc.output.time_text import duration
from memcalc.units import count_text, gib

_DEGREES = ("tp", "pp", "dp", "ep")
_PARTS = {
    "parameters": "weights", "kv_cache": "keys and values", "free_pool": "free blocks of the pool",
    "logits": "logits", "activations": "activations", "buffers": "tables, masks, token ids",
    "workspace": "workspace",
}  # fmt: skip


def infer_page(page: Page, result: ServingEstimate) -> None:
    """The whole page."""
    _title(page, result)
    _memory(page, result)
    _devices(page, result)
    _cache(page, result)
    _time(page, result.time)
    style = {"fits": "bold green", "tight": "bold yellow"}.get(result.verdict or "", "bold red")
    page.line(verdict_line(result), "" if result.verdict is None else style)
    for line in result.advice:
        page.line(f"advice: {line}")


def verdict_line(result: ServingEstimate) -> str:
    """`fits: needs 47.9 GiB of 79.4 GiB usable ...` in one line."""
    memory = result.memory
    needs = gib(memory.peak_allocated_bytes + memory.context_bytes + memory.communication_bytes)
    if result.fits is None or memory.usable_bytes is None:
        return f"no verdict: needs {needs}; name a GPU with --gpu"
    word = {"fits": "fits", "tight": "tight", "does-not-fit": "does not fit"}[result.verdict or ""]
    if memory.pool_bytes is not None:
        return (
            f"{word}: the cache needs {gib(result.kv_cache_bytes)} of the {gib(memory.pool_bytes)} "
            f"that the engine leaves for it"
        )
    return f"{word}: needs {needs} of {gib(memory.usable_bytes)} usable"


def quiet_line(result: ServingEstimate) -> str:
    """Bytes, limits and the verdict, in one line."""
    parts = [
        f"weights {result.weights_bytes}", f"kv-cache {result.kv_cache_bytes}",
        f"allocated {result.memory.peak_allocated_bytes}",
    ]  # fmt: skip
    if result.max_batch is not None:
        parts.append(f"max-batch {result.max_batch} max-context {result.max_context}")
    return " ".join([*parts, result.verdict or "no-verdict"])


def _title(page: Page, result: ServingEstimate) -> None:
    model, setup = result.model, result.setup
    page.line(
        f"{model.name}: {count_text(model.parameters)} parameters ({model.parameters:,}), "
        f"{model.num_hidden_layers} layers",
        "bold",
    )
    graphs = ", CUDA graphs" if setup["cuda_graphs"] else ""
    split = "".join(f", {name} {setup[name]}" for name in _DEGREES if setup[name] > 1)
    if setup["gpu_layers"] is not None:
        split += f", {setup['gpu_layers']} layers on the GPU"
    if setup["draft_tokens"]:
        split += f", draft {setup['draft']} of {setup['draft_tokens']} tokens"
    page.line(
        f"engine {setup['engine']}{graphs}{split}, batch {setup['batch']}, prompt {setup['prompt']} + "
        f"{setup['generated']} new = context {setup['context']}, weights {setup['weights']}, cache "
        f"{setup['cache']} in {setup['kv_cache']}, attention {setup['attention']}, gpu "
        f"{_gpu(setup)}"
    )
    page.line()


def _gpu(setup: Mapping[str, Any]) -> str:
    name = str(setup["gpu"] or "none")
    return f"{setup['gpus']} x {name}" if setup["gpus"] > 1 else name


def _memory(page: Page, result: ServingEstimate) -> None:
    memory = result.memory
    total = memory.peak_allocated_bytes
    if not total:
        page.line("no layer lies on the GPU")
        page.line()
        return
    rows = [
        (_PARTS[name], gib(size), f"{size:,}", f"{size / total:.1%}")
        for name, size in memory.breakdown.items()
        if size
    ]
    rows.append(("allocated", gib(total), f"{total:,}", "100.0%"))
    if memory.peak_reserved_bytes is not None and memory.reserved_overhead_bytes:
        rows.append(
            ("reserved", gib(memory.peak_reserved_bytes), f"{memory.peak_reserved_bytes:,}", "")
        )
    if memory.device_used_bytes is not None:
        rows.append(
            ("driver-used", gib(memory.device_used_bytes), f"{memory.device_used_bytes:,}", "")
        )
    title = "At the peak" if result.setup["gpus"] == 1 else "At the peak, each GPU"
    if len(result.stages) > 1:
        title = f"At the peak, {memory.place}"
    page.table((title, ">size", ">bytes", ">share"), rows)
    page.line(f"peak at {memory.peak_at}")
    page.line()


def _devices(page: Page, result: ServingEstimate) -> None:
    """What each of several devices holds, and the host."""
    if len(result.stages) > 1:
        rows = [
            (one.place, gib(one.weights_bytes), gib(one.kv_cache_bytes),
             gib(one.peak_allocated_bytes), gib(max(0, one.headroom_bytes or 0)))
            for one in result.stages
        ]  # fmt: skip
        page.table(("Device", ">weights", ">cache", ">allocated", ">room"), rows)
        page.line()
    if result.host_bytes:
        page.line(f"on the host: {gib(result.host_bytes)} ({result.host_bytes:,} bytes)")
        page.line()


def _cache(page: Page, result: ServingEstimate) -> None:
    setup, memory = result.setup, result.memory
    rows = [
        ("a token of a sequence", gib(result.kv_bytes_per_token), f"{result.kv_bytes_per_token:,}"),
        (f"{setup['batch']} x {setup['context']} positions", gib(result.kv_cache_bytes),
         f"{result.kv_cache_bytes:,}"),
    ]  # fmt: skip
    if memory.pool_bytes is not None:
        tokens = f"room for {memory.pool_tokens:,} tokens"
        rows.append((tokens, gib(memory.pool_bytes), f"{memory.pool_bytes:,}"))
    page.table(("Keys and values", ">size", ">bytes"), rows)
    if result.max_batch == 0 and result.max_context == 0:
        page.line("no batch and no context fits")
        page.line()
    elif result.max_batch is not None:
        page.line(
            f"at context {setup['context']} at most {result.max_batch:,} sequences fit; at batch "
            f"{setup['batch']} at most {result.max_context:,} positions"
        )
        page.line()


def _time(page: Page, time: ServingTime) -> None:
    if time.prefill_s is None or time.time_per_output_token_s is None:
        page.line("Time: unknown; name a GPU with --gpu")
        page.line()
        return
    assert time.tokens_per_s is not None and time.decode_tokens_per_s is not None
    assert time.request_s is not None and time.step_kernels_s is not None
    rows = [
        ("prompts, until the first token", duration(time.prefill_s)),
        ("a token of each sequence after it", duration(time.time_per_output_token_s)),
    ]
    if time.tokens_per_step and time.tokens_per_step > 1:
        rows.append((f"a step of {time.tokens_per_step:.3g} tokens", duration(time.step_s or 0.0)))
        if time.draft_s:
            rows.append(("  of it the draft", duration(time.draft_s)))
        rows.append(("  kernels of the model's pass", duration(time.step_kernels_s)))
    else:
        rows.append(("its kernels alone", duration(time.step_kernels_s)))
    rows.append(("the whole batch of requests", duration(time.request_s)))
    page.table(("Time", ">time"), rows)
    page.line(
        f"{time.tokens_per_s:,.4g} new tokens/s over the requests, {time.decode_tokens_per_s:,.4g} "
        f"while decoding; a step is bound by {time.bound}"
    )
    if time.low_s is not None and time.high_s is not None and time.lower_bound_s is not None:
        page.line(
            f"a token lies between {duration(time.low_s)} and {duration(time.high_s)}: {time.band}; "
            f"none beats {duration(time.lower_bound_s)}"
        )
    page.line()

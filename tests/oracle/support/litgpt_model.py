"""litgpt's GPT and the loss of its finetuning in plain PyTorch, on tensors without data.

Written anew after what litgpt/model.py (2025), litgpt/utils.py and Fabric's wrapper compute and how long
their variables live; only the order of operators and the lifetimes matter here. `steps_of` runs one
micro-batch after another's logits. Letters: b sequences, s positions, h hidden, a query heads, k
key/value heads, d head width, r rotated columns.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from memcalc.harness.watch.tracker import Alloc, StorageTracker
from memcalc.inputs.model import ModelConfig
from tests.oracle.support.engine import steps

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention


class RmsNorm(nn.Module):
    """Everything in fp32, the weight too, one cast at the end."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        x = x.float()
        mean = torch.mean(x * x, dim=-1, keepdim=True)
        normed = x * torch.rsqrt(mean + 1e-5)
        return (normed * self.weight.float()).to(dtype=kind)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h, self.d = config.hidden_size, config.head_dim
        self.a, self.k = config.num_attention_heads, config.num_key_value_heads
        self.r = config.rotary_dim or self.d
        self.qkv = nn.Linear(h, (self.a + 2 * self.k) * self.d, bias=config.attention_bias)
        self.proj = nn.Linear(self.a * self.d, h, bias=config.attention_output_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, s, _ = x.shape
        qkv = self.qkv(x)
        q, k, v = qkv.split((self.a * self.d, self.k * self.d, self.k * self.d), dim=-1)
        q = q.view(b, s, self.a, self.d)
        k = k.view(b, s, self.k, self.d)
        v = v.view(b, s, self.k, self.d)
        q = q.transpose(1, 2)
        k = k.transpose(1, 2)
        v = v.transpose(1, 2)
        q_turned = turned(q[..., : self.r], cos, sin)
        k_turned = turned(k[..., : self.r], cos, sin)
        q = torch.cat((q_turned, q[..., self.r :]), dim=-1)
        k = torch.cat((k_turned, k[..., self.r :]), dim=-1)
        if self.k != self.a:
            k = k.repeat_interleave(self.a // self.k, dim=1)
            v = v.repeat_interleave(self.a // self.k, dim=1)
        y = _FLASH(q, k, v, 0.0, True)[0].transpose(1, 2)
        y = y.reshape(b, s, -1)
        return self.proj(y)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (-second half, first half) sin, in the tables' dtype, cast back."""
    half = x.size(-1) // 2
    first = x[..., :half]
    second = x[..., half:]
    joined = torch.cat((-second, first), dim=-1)
    cos = cos.view(1, 1, *cos.shape)
    sin = sin.view(1, 1, *sin.shape)
    out = (x * cos) + (joined * sin)
    return out.to(dtype=x.dtype)


class GatedMlp(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h, f, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.one, self.two = nn.Linear(h, f, bias=bias), nn.Linear(h, f, bias=bias)
        self.proj = nn.Linear(f, h, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(x)
        x = F.silu(one) * two
        return self.proj(x)


class PlainMlp(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        h, f, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.fc, self.proj = nn.Linear(h, f, bias=bias), nn.Linear(f, h, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        x = F.gelu(x)
        return self.proj(x)


def norm_of(config: ModelConfig) -> nn.Module:
    """Its norm, as wide as the model."""
    wide = config.hidden_size
    return nn.LayerNorm(wide) if config.norm_type == "layernorm" else RmsNorm(wide)


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.norm1, self.attn = norm_of(config), Attention(config)
        shared = config.parallel_block and config.parallel_norms == 1
        self.norm2 = None if shared else norm_of(config)
        self.mlp = GatedMlp(config) if config.gated_mlp else PlainMlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normed = self.norm1(x)
        attended = self.attn(normed, cos, sin)
        if self.config.parallel_block:
            if self.norm2 is not None:
                normed = self.norm2(x)
            x = attended + x
        else:
            x = attended + x
            assert self.norm2 is not None
            normed = self.norm2(x)
        return self.mlp(normed) + x


class Gpt(nn.Module):
    """Embedding, blocks, norm and a head of its own; tables as setting max_seq_length makes them."""

    def __init__(self, config: ModelConfig, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = norm_of(config)

    def forward(self, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = self.wte(ids)
        for block in self.blocks:
            if self.recompute:
                x = checkpoint(block, x, cos, sin, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, cos, sin)
        x = self.norm(x)
        return self.head(x)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, 128 rows at a time."""
    logits = logits.reshape(-1, logits.size(-1))
    targets = targets.reshape(-1)
    parts = logits.split(128)
    target_parts = targets.split(128)
    losses = [
        F.cross_entropy(part, target, ignore_index=-1, reduction="none")
        for part, target in zip(parts, target_parts, strict=True)
    ]
    count = (targets != -1).sum()
    # on meta tensors max(1, count) cannot read its comparison
    return torch.cat(losses).sum() / _at_least_one(count)


def _at_least_one(count: Tensor) -> Tensor:
    flag = count > 1
    del flag
    return count


def steps_of(
    config: ModelConfig, shape: tuple[int, int], mixed: bool, recompute: bool, wide: bool = True
) -> list[tuple[int, list[int]]]:
    """Allocations of one forward and backward, each with the sizes freed before the next."""
    where = "cpu" if mixed else "meta"  # meta tensors ignore autocast
    stack = ExitStack()
    if mixed:
        stack.enter_context(FakeTensorMode())
    with stack:
        return _steps_on(where, config, shape, recompute, wide)


def _steps_on(
    where: str, config: ModelConfig, shape: tuple[int, int], recompute: bool, wide: bool
) -> list[tuple[int, list[int]]]:
    mixed = where == "cpu"
    with torch.device(where):
        model = Gpt(config, recompute)
        model = model if mixed else model.to(torch.bfloat16)
        ids = torch.zeros(shape, dtype=torch.long)
        columns = config.rotary_dim or config.head_dim
        kind = torch.float32 if wide else torch.bfloat16
        tables = [torch.empty(shape[1], columns, dtype=kind) for _ in range(2)]
        loop: dict[str, Any] = {"logits": torch.empty(*shape, config.vocab_size)}
    tracker = StorageTracker(where)
    tracker.track(model, ids, *tables)
    before = {alloc.storage for alloc in tracker.live_storages()}
    tracker.track(loop["logits"])
    begin = len(tracker.events)
    with tracker:
        _micro_batch(model, ids, tables, loop, mixed)
    return steps(
        [
            event.nbytes if isinstance(event, Alloc) else -event.nbytes
            for event in tracker.events[begin:]
            if event.storage not in before
        ]
    )


def _micro_batch(
    model: Gpt, ids: Tensor, tables: list[Tensor], loop: dict[str, Any], mixed: bool
) -> None:
    loop["logits"] = _called(model, ids, tables, mixed)
    logits = loop["logits"]
    loss = loss_of(logits[..., :-1, :], ids[..., 1:])
    loss = loss / 1
    loss.backward()


def _called(model: Gpt, ids: Tensor, tables: list[Tensor], mixed: bool) -> Tensor:
    """Fabric's wrapper: autocast around the model alone, its result in fp32."""
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        out = model(ids, *tables)
    return out.float()

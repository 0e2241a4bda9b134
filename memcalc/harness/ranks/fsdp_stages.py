"""What FSDP does at a moment, named as the ledger names it, for whoever watches a step.

A group gathers its parts into one buffer (all_gather), copies them out into whole parameters (unshard),
frees those or keeps a larger part (reshard), and sums its gradients over the ranks (reduce_scatter).
FSDP has no hooks at these places: its groups' own methods are wrapped. A release of PyTorch that names
them otherwise runs all the same, its storages without a name.
Source: PyTorch 2.13, torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py.
Checked by: oracle/test_rank_oracle.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, Final

from torch import nn

from memcalc.harness.watch.scopes import layer, op

#: Methods of a group, and the operator of the ledger each is.
STAGES: Final = {
    "unshard": "all_gather",
    "wait_for_unshard": "unshard",
    "reshard": "reshard",
    "post_backward": "reduce_scatter",
}


def name_stages(module: nn.Module, index: int | None) -> None:
    """Name what the groups of a module that fully_shard has taken do; index: of a block, else None."""
    for group in _groups(module):
        for method, stage in STAGES.items():
            own = getattr(group, method, None)
            if own is not None:
                setattr(group, method, _named(own, stage, index))


def _groups(module: Any) -> Iterable[Any]:
    state = module._get_fsdp_state()
    several = getattr(state, "_fsdp_param_groups", None)
    one = getattr(state, "_fsdp_param_group", None) if several is None else None
    return several or ([] if one is None else [one])


def _named(own: Callable[..., Any], stage: str, index: int | None) -> Callable[..., Any]:
    def method(*args: Any, **kwargs: Any) -> Any:
        with nullcontext() if index is None else layer(index), op(stage):
            return own(*args, **kwargs)

    return method

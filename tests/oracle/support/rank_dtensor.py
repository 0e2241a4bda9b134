"""DTensor and functional collectives on tensors without data, without storages no GPU would have.

- A functional collective's result is waited for at once in a fake mode, and the stand-in of
  `wait_tensor` there makes a second tensor; the operator itself returns the one it was given.
- `loss_parallel` asks for the shapes of its operators at every call by running them on whole tensors
  (with data the answer is kept): that happens in a fake mode of its own, as it does with data.
Checked by: oracle/test_rank_oracle.py, the same step on real tensors event for event.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch.distributed._functional_collectives as functional
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.tensor._sharding_prop import ShardingPropagator


@contextmanager
def dtensor_without_data() -> Iterator[None]:
    """Context in which DTensor makes on fake tensors what it makes on real ones."""
    propagate = ShardingPropagator._propagate_tensor_meta_non_cached

    def apart(self: ShardingPropagator, schema: Any) -> Any:
        with unset_fake_temporarily():
            return propagate(self, schema)

    with (
        mock.patch.object(functional, "wait_tensor", _same),
        mock.patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", apart),
    ):
        yield


def _same(tensor: Tensor) -> Tensor:
    return tensor

"""DDP on the fake process group and tensors without data.

The reducer is torch's own, in C++. Three things it cannot do here: compare parameters between ranks (it
reads their data), read an all-reduce's result from the fake group's future, which is empty, and, before
the second forward, agree with the other ranks on new buckets in the order gradients came (it writes
their numbers into a tensor). The first is left out. A communication hook that returns the bucket itself
stands in for the all-reduce; with a hook the reducer copies a gradient into its bucket where it else
multiplies it into it, which takes the same memory. The numbers are given a tensor with data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memcalc.harness.ranks import rank_step

_MODULE = "torch.nn.parallel.distributed"


class _IndicesWithData(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Whole numbers are made with data, everything else as the mode below makes it."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fake = any(isinstance(tensor, FakeTensor) for tensor in given)
        if fake or not given and kwargs.get("dtype") != torch.int32:
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)


@contextmanager
def buckets_without_data(views: bool) -> Iterator[None]:
    """Context in which DDP can be made on fake tensors; views: gradients are views of buckets."""
    buckets: dict[int, Tensor] = {}

    class Bucketed(DistributedDataParallel):
        def __init__(self, module: nn.Module, **options: Any) -> None:
            super().__init__(module, **options | {"gradient_as_bucket_view": views})
            reduce.__annotations__.clear()  # DDP compares them with classes, not with their names
            self.register_comm_hook(None, reduce)

    def reduce(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        if bucket.index() == 0:
            buckets.clear()
        buckets[bucket.index()] = bucket.buffer()
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    rebuild = dist.Reducer._rebuild_buckets

    def rebuild_buckets(reducer: dist.Reducer) -> bool:
        with _IndicesWithData():
            return rebuild(reducer)

    with (
        mock.patch.object(dist.Reducer, "_rebuild_buckets", rebuild_buckets),
        mock.patch(f"{_MODULE}._verify_param_shape_across_processes"),
        mock.patch(f"{_MODULE}._sync_module_states"),
        mock.patch.object(rank_step, "DistributedDataParallel", Bucketed),
        mock.patch.object(rank_step, "_one_of_each_storage", lambda _: list(buckets.values())),
    ):
        yield

"""Fixed costs: a kernel that hardly works, and what it takes to launch one from Python.

In a CUDA graph kernels follow each other without Python, so the time of a tiny one is the fixed cost
t0 of the time formulas. A thousand tiny eager operations take as long as their launches: a step of
many small kernels cannot go faster. A CPU has no graphs; there an eager operation's cost is both.
Checked by: harness/test_calibrate.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from memcalc.harness.calibration.microbench import DTYPES, Point, Scale, Task, point
from memcalc.harness.calibration.microbench_gemm import Product
from memcalc.harness.calibration.timing import Bench

IN_GRAPH = 64  # kernels of one graph
EAGER = 1000  # operations of one batch
_TINY = (16, 64, 64)  # (m, n, k)


def fixed_costs(scale: Scale) -> list[Task]:
    """Launches from Python and additions in a graph, then tiny and skinny products in both ways."""
    found = [
        Task(f"{EAGER} tiny additions, eager", _eager_addition),
        Task(f"{IN_GRAPH} tiny additions in a CUDA graph", _additions_in_graph),
    ]
    for dtype in scale.dtypes:
        for name, shape in (("tiny gemm", _TINY), ("skinny gemm", scale.skinny)):
            found += [_eager_task(name, Product(*shape, dtype)),
                      _graph_task(name, Product(*shape, dtype))]  # fmt: skip
    return found


def _eager_task(name: str, product: Product) -> Task:
    """Products launched one by one; tiny ones a thousand a batch, for they measure the launch."""

    def run(bench: Bench) -> Point:
        sets = bench.sets(lambda: product.operands(bench), product.bytes)
        calls = EAGER if name == "tiny gemm" else None
        timed = bench.time(lambda call: product.run(*sets[call % len(sets)]), calls)
        what = {"what": name, "how": "eager", **product.what()}
        return point("fixed", what, timed, product.flops, product.bytes)

    return Task(f"{product.label}, eager", run)


def _graph_task(name: str, product: Product) -> Task:
    """Products one after the other in a graph, each on weights that are not in the cache."""

    def run(bench: Bench) -> Point:
        _needs_cuda(bench)
        sets = bench.sets(lambda: product.operands(bench), product.bytes)
        m, n, _ = product.shape
        out = torch.empty(m, n, dtype=DTYPES[product.dtype], device=bench.device)

        def body() -> None:
            for index in range(IN_GRAPH):
                first, second = sets[index % len(sets)]
                torch.mm(first, second.t(), out=out)

        what = {"what": name, "how": "graph", **product.what()}
        return _timed_graph(bench, body, what, (product.flops, product.bytes))

    return Task(f"{product.label}, {IN_GRAPH} in a CUDA graph", run)


def _eager_addition(bench: Bench) -> Point:
    x, y = bench.randn(8), bench.randn(8)
    timed = bench.time(lambda call: x + y, calls=EAGER)
    return point("fixed", {"what": "addition", "how": "eager"}, timed)


def _additions_in_graph(bench: Bench) -> Point:
    _needs_cuda(bench)
    x, y = bench.randn(8), bench.randn(8)
    out = torch.empty_like(x)

    def body() -> None:
        for _ in range(IN_GRAPH):
            torch.add(x, y, out=out)

    return _timed_graph(bench, body, {"what": "addition", "how": "graph"}, (0, 0))


def _needs_cuda(bench: Bench) -> None:
    if bench.device.type != "cuda":
        raise NotImplementedError("CUDA graphs need a CUDA device")


def _timed_graph(
    bench: Bench, body: Callable[[], None], what: Point, work: tuple[float, float]
) -> Point:
    """Seconds of one kernel of a graph: the replay's over their number."""
    make: Any = torch.cuda.Stream
    side = make(bench.device)
    side.wait_stream(torch.cuda.current_stream(bench.device))
    with torch.cuda.stream(side):  # libraries make their workspaces before the capture
        body()
    torch.cuda.current_stream(bench.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    timed = bench.time(lambda call: graph.replay())
    each = timed._replace(**{
        name: getattr(timed, name) / IN_GRAPH for name in ("median_s", "p10_s", "p90_s")
    })  # fmt: skip
    return point("fixed", {**what, "kernels": IN_GRAPH}, each, *work)

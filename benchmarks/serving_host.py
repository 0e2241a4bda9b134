"""Seconds until a kernel is reached from Python in transformers' decode loop, from one source's rows.

The two 16-bit rows of QwenLM/Qwen's README (Qwen-1.8B and Qwen-7B on an A100, batch 1) take 0.77 and
0.76 ms a layer: neither is bound by the device. Their seconds a token over the kernels of a step is what
one launch takes; the median goes into profiles/engines/transformers.toml. Those rows are not evaluated.

    python -m benchmarks.serving_host
"""

from __future__ import annotations

from statistics import median

from memcalc.accuracy.pricing import THROUGHPUT
from memcalc.accuracy.rows import published_rows, read_rows
from memcalc.accuracy.serving import FITTED, serving_pairs
from memcalc.inputs.engines import load_engine


def main() -> None:
    """Print the seconds a launch of each row, their median, and what the profile has."""
    known = float(load_engine("transformers").values["launch_s"])
    found = []
    for row in read_rows(published_rows()).rows:
        if FITTED not in row.source or row.text("precision") != "bf16":
            continue
        for pair in serving_pairs(row):
            if pair.what == THROUGHPUT:  # launch-bound: seconds go with the launch
                found.append(known * pair.predicted / pair.measured)
                print(f"{row.text('model')}: {found[-1] * 1e6:.2f} us a kernel")
    print(f"median {median(found) * 1e6:.2f} us; profile {known * 1e6:.2f} us")


if __name__ == "__main__":
    main()

"""Seconds of a 1F1B pipeline's step for many setups at once, in closed form.

Symbols: p ranks, v chunks of a rank, m micro-batches of a step, F_i and B_i the seconds that rank i is
taken by a forward and a backward, its sends included, c_i = F_i + B_i. `timing/pipeline_time.py` follows
every action; here the same longest path is found without going through m.

1F1B whose sends are waited for. Rank i has w_i = p - 1 - i forwards ahead. Number the turns of a rank so
that turn r is the forward of micro-batch r + w_i and the backward of r: a path through the step goes down
one rank a turn for F, or up any number of ranks within a turn for F and every B on its way, or stays for
c_i. The longest stays at one rank i, so that

    span = max over i of (m - w_i) c_i + before_i + after_i
    before_i = max(W_i, max over a > i of W_a + F_a + B_i + ... + B_a - c_i)
    W_a = F_0 + ... + F_(a-1) + w_a max(F_0 ... F_a)

after_i is before_i with F and B exchanged. A rank with more ahead than there are micro-batches does all
forwards, then all backwards. The interleaved schedule is in waves.py.
Source: Narayanan et al. 2021 (arXiv:2104.04473), sec. 2.2. Checked by: property/test_search_spans.py,
against `pipeline_time`.
"""

from __future__ import annotations

from typing import Any


def one_f_one_b_s(forward: Any, backward: Any, batches: Any) -> Any:
    """Seconds of 1F1B, shape (lanes,).

    forward, backward: what each rank is taken by, shape (p, lanes), sends included; batches: (lanes,).
    Checked by: property/test_search_spans.py.
    """
    import numpy as np

    ranks = len(forward)
    both = forward + backward
    w = np.arange(ranks)[::-1]
    done_f, done_b = _before(forward), _before(backward)
    most_f, most_b = (np.maximum.accumulate(one, axis=0) for one in (forward, backward))
    ahead = done_f[:-1] + w[:, None] * most_f
    behind = done_b[:-1] + w[:, None] * most_b
    turned = _later(ahead + forward + done_b[1:])
    back = _later(behind + backward + done_f[1:])
    best = np.zeros_like(both[0])
    few = batches < ranks
    for i in range(ranks):
        before = np.maximum(ahead[i], turned[i] - done_b[i] - both[i])
        after = np.maximum(behind[i], back[i] - done_f[i] - both[i])
        span = (batches - w[i]) * both[i] + before + after
        if few.any():
            every = done_f[i + 1] + done_b[i + 1] + (batches - 1) * (most_f[i] + most_b[i])
            span = np.where(batches > w[i], span, every)
        best = np.maximum(best, span)
    return best


def _before(seconds: Any) -> Any:
    """Sums of the ranks before each, and of all: shape (p + 1, lanes)."""
    import numpy as np

    return np.concatenate([np.zeros_like(seconds[:1]), np.cumsum(seconds, axis=0)])


def _later(values: Any) -> Any:
    """The most of the ranks after each; -inf for the last."""
    import numpy as np

    most = np.maximum.accumulate(values[::-1], axis=0)[::-1]
    return np.concatenate([most[1:], np.full_like(values[:1], -np.inf)])

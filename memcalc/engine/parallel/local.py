"""What one rank's dims are: heads, columns, vocabulary rows, positions and experts of its own.

A rank of tp holds a/t query heads, k/t key/value heads (at least one), f/t columns of the MLP and V/t
rows of the vocabulary, rounded up; a rank of cp holds s/c positions. What is not divided keeps its
value: the hidden size, head widths, the batch.
Sources: Shoeybi et al. 2019 (arXiv:1909.08053), sec. 3. Checked by: unit/test_parallel_plan.py.
"""

from __future__ import annotations

from memcalc.inputs.parallel import ParallelPlan

#: Letters that tensor parallelism divides.
_DIVIDED = ("a", "k", "f", "V")


def local_values(values: dict[str, int], layout: ParallelPlan) -> dict[str, int]:
    """The dim values of one rank, from those of the whole model.

    values: as `dims.dim_values` gives them. Counts that tp does not divide are rounded up.
    """
    own = dict(values)
    for letter in _DIVIDED:
        own[letter] = -(-values[letter] // layout.tp)
    own["g"] = own["a"] // own["k"]
    own["s"] = -(-values["s"] // layout.cp)
    if layout.cp > 1 and layout.cp_method == "ulysses":
        own |= {"a_c": own["a"] // layout.cp, "k_c": max(1, own["k"] // layout.cp)}
    if "E" in own:
        own["R"] = -(-values["R"] // layout.cp)
        if layout.ep > 1:
            own["R_s"] = own["b"] * own["s"] * own["t"]
            own["e"] = own["E"] // layout.ep
    if layout.tp > 1:
        own["tp"] = layout.tp
    if layout.sp:
        own["s_t"] = own["s"] // layout.tp
    return own

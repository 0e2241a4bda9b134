"""Micro-programs: what each op of the ledger allocates and frees, in order, forward and backward.

`+name:size` allocates what the primitive `name` makes, `-name` frees it. They are read off the traced
events, never stated: an op's program ends where the next op allocates.
Checked by: unit/test_explain.py.
"""

from __future__ import annotations

from memcalc.engine.structure import Structure

#: (traced block, op, "forward" or "backward") -> steps
Programs = dict[tuple[int, str, str], tuple[str, ...]]
_KEY = "micro-programs"


def micro_programs(structure: Structure) -> Programs:
    """The programs of every op of every traced block; recomputed steps are left out."""
    known = structure.cache.get(_KEY)
    if isinstance(known, dict):
        return known
    steps: dict[tuple[int, str, str], list[str]] = {}
    current: list[str] = []
    for event in structure.events:
        storage = event if event >= 0 else ~event
        if event < 0:
            current.append(f"-{structure.names[storage]}")
            continue
        label = structure.labels[structure.labels_of[storage]]
        if label.recomputed:
            current = []
            continue
        direction = "backward" if label.phase == "backward" else "forward"
        current = steps.setdefault((label.block, label.op, direction), [])
        current.append(f"+{structure.names[storage]}:{structure.sizes[storage]}")
    found = {key: tuple(program) for key, program in steps.items()}
    structure.cache[_KEY] = found
    return found

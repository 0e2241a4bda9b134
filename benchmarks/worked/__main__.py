"""python -m benchmarks.worked: write the page of worked cases, or print some of them.

Without words it computes every figure (about half a minute) and writes docs/worked_cases.md; with numbers
of cases, as W9, it prints these and writes nothing. Status 1: a figure is not what its case allows; 2: no
such case.
"""

from __future__ import annotations

import sys

from benchmarks.worked.case import Found, compute, written
from benchmarks.worked.cases import CASES
from benchmarks.worked.page import PAGE, figures, page


def main(words: list[str]) -> int:
    """Compute, write or print, and say which figures are off."""
    if unknown := set(words) - {case.number for case in CASES}:
        print(
            f"case: got {', '.join(sorted(unknown))}; valid: W1 to A6, as on the page",
            file=sys.stderr,
        )
        return 2
    found = [
        (case, compute(figure)) for case, figure in figures() if not words or case.number in words
    ]
    for case, one in found:
        if words or not (one.allowed and one.proven):
            print(case.number, _said(one))
    if not words:
        text = page([written(one.ours) for _, one in found])
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE.name}: {len(found)} figures")
    return 0 if all(one.allowed and one.proven for _, one in found) else 1


def _said(one: Found) -> str:
    figure, off = one.figure, one.difference
    far = "" if off is None else f" {100 * off:+.2f} %"
    judged = "" if one.allowed else "  NOT ALLOWED"
    judged += "" if one.proven else "  REASON NOT SHOWN"
    return f"{figure.asked}: {written(figure.theirs)} {figure.unit}, ours {written(one.ours)}{far}{judged}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

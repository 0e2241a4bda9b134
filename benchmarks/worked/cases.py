"""All worked cases, by kind, and the tests that hold them."""

from __future__ import annotations

from typing import Final

from benchmarks.worked.advice import ADVICE
from benchmarks.worked.case import Case
from benchmarks.worked.feedback import FEEDBACK
from benchmarks.worked.parallel import PARALLEL
from benchmarks.worked.serving import SERVING
from benchmarks.worked.states import STATES
from benchmarks.worked.tuning import TUNING
from benchmarks.worked.utilisation import UTILISATION

#: Letter: heading, cases, file of the tests in tests/unit.
KINDS: Final[dict[str, tuple[str, tuple[Case, ...], str]]] = {
    "W": ("Weights, states and rules of thumb", STATES, "test_worked_states.py"),
    "P": ("Parameter-efficient fine-tuning", TUNING, "test_worked_tuning.py"),
    "D": ("Training on several GPUs", PARALLEL, "test_worked_parallel.py"),
    "R": ("Training from feedback", FEEDBACK, "test_worked_feedback.py"),
    "U": ("Utilisation and networks", UTILISATION, "test_worked_utilisation.py"),
    "I": ("Inference", SERVING, "test_worked_serving.py"),
    "A": ("Advice", ADVICE, "test_worked_advice.py"),
}
CASES: Final = tuple(case for _, cases, _ in KINDS.values() for case in cases)


def name_of_test(case: Case) -> str:
    """The id of the test that computes a case."""
    return f"tests/unit/{KINDS[case.number[0]][2]}::test_case[{case.number}]"

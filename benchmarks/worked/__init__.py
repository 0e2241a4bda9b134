"""Worked cases: figures that papers, projects and teaching notes state, beside those memcalc gives.

One table a kind of question (states, tuning, parallel, feedback, utilisation, serving, advice); `cases.py`
joins them. The tests in tests/unit/test_worked_*.py and docs/worked_cases.md are made of these tables:

    python -m benchmarks.worked            write docs/worked_cases.md
    python -m benchmarks.worked W9 D1      print these cases as they come out now
"""

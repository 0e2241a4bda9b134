"""Accuracy: measured runs, priced and held against what was measured.

Rows of a CSV (columns.py, rows.py) become what `memcalc.estimate` takes (models.py, setups.py), or a
reason why they cannot; pricing.py pairs predicted with measured, scores.py makes the error tables.
The published rows of others are in benchmarks/published; a user's own file has the same columns.
"""

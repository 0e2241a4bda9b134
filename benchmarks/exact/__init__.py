"""Records of comparisons with an oracle, and the configurations that are compared.

A file of records for each class; benchmarks/exact_records.py writes them.
"""

"""The proof: every class of prediction scored in one object, beside the closed forms of the textbook.

items.py what is scored and how; records.py comparisons with oracles, clocks and kernels; published.py runs
of others; build.py the whole of `memcalc accuracy --report`. No figure is made here: each is read from a
record, or priced from a published row.
"""

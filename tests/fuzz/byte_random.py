"""A random.Random whose numbers are a fuzzer's bytes, so that coverage can steer what is drawn."""

from __future__ import annotations

import random


class ByteRandom(random.Random):
    """Draws from bytes; zeros when they are used up, which every generator ends with.

    Checked by: fuzz/test_fuzz.py.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data, self._at = data, 0

    def _take(self, count: int) -> int:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return int.from_bytes(taken.ljust(count, b"\0"), "little")

    def random(self) -> float:
        """In [0, 1), from two bytes."""
        return self._take(2) / 65536

    def getrandbits(self, k: int) -> int:
        """k bits; where they were drawn again for being too large, smaller ones follow at the end."""
        return self._take((k + 7) // 8) & ((1 << k) - 1)

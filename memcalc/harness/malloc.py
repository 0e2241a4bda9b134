"""Host memory that is freed stays with the process while steps are timed on a CPU.

glibc's malloc gives large blocks, and the free end of its heap, back to the kernel, which hands them out
again page by page, filled with zeros: a step of more than some 64 MiB of activations then takes up to a
third longer, by an amount that depends on what else was freed. Kept, a step's memory is the same pages
each time, as with the allocators CPU training is advised to preload (jemalloc, tcmalloc) and as on a GPU
under torch's caching allocator. Other C libraries are left as they are. No torch.
Source: mallopt(3), M_TRIM_THRESHOLD, M_MMAP_MAX, M_TOP_PAD. Checked by: harness/test_malloc.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Parameters of mallopt(3), with what keeps memory and glibc's own values: trim the heap's end above so
#: many bytes; ask the kernel for so many bytes more than needed; so many blocks mapped one by one.
_TRIM, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEEP = ((_TRIM, 2**31 - 1), (_TOP_PAD, 64 << 20), (_MMAP_MAX, 0))
_USUAL = ((_TRIM, 64 << 20), (_TOP_PAD, 128 << 10), (_MMAP_MAX, 65536))


class _Nested:
    depth = 0


@contextmanager
def kept(wanted: bool = True) -> Iterator[None]:
    """Context: freed memory is kept; may be nested. After the outermost, what is free goes back."""
    libc = _libc() if wanted else None
    if libc is None:
        yield
        return
    _Nested.depth += 1
    try:
        if _Nested.depth == 1:
            _set(libc, _KEEP)
        yield
    finally:
        _Nested.depth -= 1
        if _Nested.depth == 0:
            _set(libc, _USUAL)
            libc.malloc_trim(0)


def _libc() -> Any:
    """The C library, if it is glibc; None elsewhere."""
    try:
        found = ctypes.CDLL(None)
        return found if hasattr(found, "mallopt") and hasattr(found, "malloc_trim") else None
    except (OSError, TypeError):
        return None


def _set(libc: Any, values: tuple[tuple[int, int], ...]) -> None:
    for parameter, value in values:
        libc.mallopt(parameter, value)

"""python -m tests.fuzz.with_atheris TARGET: coverage of memcalc decides what is drawn next.

    python -m tests.fuzz.with_atheris config --inputs 20000
    python -m tests.fuzz.with_atheris words --seconds 60

Atheris (Linux, extra `fuzz`) makes bytes, `byte_random.py` draws a target's case from them, `oracle.py`
judges it. A find is told once and does not end the run; the status is then 1. memcalc is imported under
its instrumentation, so nothing of the package may be imported before.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

#: Bytes of an input; what is drawn beyond them is zeros.
_MOST_BYTES = 1024


class _Told:
    """What came of the inputs so far."""

    def __init__(self, target: str) -> None:
        self.target, self.statuses = target, Counter[int]()
        self.finds: dict[Any, list[str]] = {}

    def say(self) -> None:
        """One line of figures."""
        count = sum(self.statuses.values())
        said = ", ".join(f"{status}: {n}" for status, n in sorted(self.statuses.items()))
        print(
            f"{self.target}: {count} inputs, {said}; {len(self.finds)} kinds of finds", flush=True
        )


def main() -> int:
    """Fuzz one target; libFuzzer ends the process itself when all is run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.with_atheris")
    parser.add_argument("target")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seconds", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", help="folder that inputs of new coverage are kept in")
    asked = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("error: atheris is not installed; rule: pip install 'memcalc[fuzz]', on Linux")
        return 2
    sys.argv = sys.argv[:1]
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a line for each of some hundred modules
    with atheris.instrument_imports(include=["memcalc"]):
        from tests.fuzz import oracle
        from tests.fuzz.batches import warm
        from tests.fuzz.targets import TARGETS

        warm()
    os.dup2(stderr, 2)
    corpus = Path(asked.corpus or tempfile.mkdtemp(prefix="memcalc-corpus-")).resolve()
    _seeded(corpus, asked.seed)
    _fuzz(atheris, oracle, TARGETS[asked.target][0], asked, corpus)
    return 0


def _seeded(corpus: Path, seed: int) -> None:
    """Some inputs of random bytes, or the first would be empty, which is one and the same case."""
    corpus.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    for number in range(50):
        (corpus / f"seed-{number}").write_bytes(chance.randbytes(_MOST_BYTES))


def _fuzz(atheris: Any, oracle: Any, make: Any, asked: argparse.Namespace, corpus: Path) -> None:
    from tests.fuzz.byte_random import ByteRandom

    told = _Told(asked.target)
    folder = tempfile.TemporaryDirectory(prefix="memcalc-fuzz-")
    box = oracle.sandbox(Path(folder.name))
    work = box.__enter__()

    def one(data: bytes) -> None:
        case = make(ByteRandom(data))
        ended, find = oracle.run(case, work)
        told.statuses[ended.status] += 1
        if find is not None and find not in told.finds:
            told.finds[find] = case.words
            print(f"found {find.kind}: {find.detail}\n  {case.words}\n  {data.hex()}", flush=True)
        count = sum(told.statuses.values())
        if count % 100 == 0 or count == asked.inputs:
            told.say()

    words = [sys.argv[0], f"-max_len={_MOST_BYTES}", "-len_control=0", f"-seed={asked.seed}",
             "-timeout=0", "-rss_limit_mb=8192", "-verbosity=0"]  # fmt: skip
    words += [f"-runs={asked.inputs}"] if asked.seconds is None else []
    words += [f"-max_total_time={asked.seconds}"] if asked.seconds is not None else []
    atheris.Setup([*words, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())

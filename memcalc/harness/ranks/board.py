"""What ranks tell each other outside collectives: short texts in the store torchrun keeps for them.

A collective needs every rank; this does not, so a rank can learn of another's end while it waits for
it. The connection is the board's own, for one that waits in the store blocks it.
Checked by: harness/test_distributed.py.
"""

from __future__ import annotations

import datetime
import os

import torch.distributed as dist

from memcalc.errors import ConfigError

_TIMEOUT_S = 30


class Board:
    """Texts by key, for one run of a process group; `put` is seen by all ranks at once."""

    def __init__(self, run: str) -> None:
        """run: the same on every rank, another for every run. Needs the process group's store."""
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.prefix = f"memcalc/{restart}/{run}"
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=_TIMEOUT_S),
        )

    def put(self, key: str, text: str) -> None:
        """Set a text; a later one replaces it."""
        self._store.set(f"{self.prefix}/{key}", text)

    def claim(self, key: str, text: str) -> None:
        """Set a text unless there is one."""
        self._store.compare_set(f"{self.prefix}/{key}", "", text)

    def get(self, key: str) -> str | None:
        """The text of a key, None while there is none. Does not wait."""
        name = f"{self.prefix}/{key}"
        if not self._store.check([name]):
            return None
        text: str = self._store.get(name).decode()
        return text


def need_address() -> None:
    """Raise ConfigError unless the environment says where the ranks meet."""
    missing = [n for n in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(n)]
    if missing:
        raise ConfigError(
            f"torchrun: got WORLD_SIZE and no {missing[0]}; rule: start with "
            "torchrun --nproc-per-node N"
        )

"""One small calibration of this CPU for all tests of a run, whichever process asks first."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

#: Seconds another process may take to measure it.
_PATIENCE_S = 300.0


def small_calibration(factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `calibrate` finds with small sizes and one thread."""
    from memcalc.inputs import calibrations

    path = _folder(factory) / "small-calibration.toml"
    try:
        path.with_suffix(".lock").touch(exist_ok=False)
    except FileExistsError:
        _wait(path)
    else:
        _measure(path)
    return calibrations.read(path)


def _folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run share."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def _measure(path: Path) -> None:
    import torch

    from memcalc.harness.calibration import calibrate
    from memcalc.inputs import calibrations

    threads = torch.get_num_threads()
    found = calibrate.run(torch.device("cpu"), small=True, threads=1)
    torch.set_num_threads(threads)
    whole = path.with_suffix(".part")
    whole.write_text(calibrations.to_text(found), "utf-8")
    whole.replace(path)


def _wait(path: Path) -> None:
    until = time.monotonic() + _PATIENCE_S
    while not path.exists():
        if time.monotonic() > until:
            pytest.fail("the calibration that another process measures did not come")
        time.sleep(0.2)

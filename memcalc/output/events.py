"""A step's events as a file: `--timeline FILE`, a row for each allocation and release.

The events are made by engine/events.py and engine/stage_events.py. Checked by: cli/test_timeline.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from memcalc.engine.events import Event

COLUMNS = ("index", "phase", "layer", "op", "primitive", "allocated_bytes", "live_bytes")


def write_events(events: Sequence[Event], path: str) -> None:
    """Write the rows as CSV, or as a JSON list of objects, by the file's ending."""
    from memcalc.errors import ConfigError
    from memcalc.output.files import write_text

    rows = [
        (i, e.phase, e.layer, e.op, e.primitive, e.allocated_bytes, e.live_bytes)
        for i, e in enumerate(events)
    ]
    if path.lower().endswith(".json"):
        import json

        body = ",\n".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows)
        write_text(path, f"[\n{body}\n]\n")
    elif path.lower().endswith(".csv"):
        lines = [",".join(COLUMNS), *(",".join(map(str, row)) for row in rows)]
        write_text(path, "\n".join(lines) + "\n")
    else:
        raise ConfigError(f"--timeline: got {path!r}; rule: a file ending in .csv or .json")

"""Typed reading of a config.json: every key read is remembered, so the rest can be reported.

A family function asks for its keys here. A value of the wrong type, a missing required key or a
size outside [1, 2^31] raises a one-line ConfigError; a key nobody asked for is left in `unread`.
"""

from __future__ import annotations

import math
from typing import Any, Final

from memcalc.errors import ConfigError, nearest
from memcalc.inputs.files import shown
from memcalc.inputs.model import MAX_DIM

#: Marks a key without default.
REQUIRED: Final = object()
#: No published model comes near; a per-layer tuple of more would only be a typing error.
MAX_LAYERS = 10_000
#: The activation names of transformers.activations.ACT2FN that decoders use.
ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python",
    "gelu_python_tanh", "gelu_pytorch_tanh", "leaky_relu", "mish", "quick_gelu", "relu",
    "relu2", "relu6", "sigmoid", "silu", "swish", "tanh",
)  # fmt: skip
DTYPES = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")


class Fields:
    """The keys of one configuration, read by name and type.

    Checked by: unit/test_bad_configs.py, unit/test_hf_import.py.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.read: set[str] = set()
        self.notes: list[str] = []

    def _find(self, keys: tuple[str, ...]) -> tuple[str, object]:
        """The first of several spellings that is present, and its value; all count as read."""
        self.read.update(keys)
        for key in keys:
            if key in self.config:
                return key, self.config[key]
        return keys[0], REQUIRED

    def has(self, key: str) -> bool:
        """Whether the key is present, null included."""
        return key in self.config

    def _value(self, keys: tuple[str, ...], default: object) -> tuple[str, object]:
        key, value = self._find(keys)
        if value is REQUIRED:
            value = default
        if value is REQUIRED:
            close = nearest(key, self.config)
            hint = f"; nearest: {', '.join(close)}" if close else ""
            raise ConfigError(f"{key}: missing; rule: required for this model_type{hint}")
        return key, value

    def size(self, *keys: str, default: object = REQUIRED, minimum: int = 1) -> int:
        """A whole number in [minimum, 2^31] under the first spelling present."""
        key, value = self._value(keys, default)
        return _checked_size(key, value, minimum)

    def size_or_none(self, *keys: str, default: int | None = None) -> int | None:
        """As `size`, where null (or absence) means that the family derives the value."""
        key, value = self._value(keys, default)
        return None if value is None else _checked_size(key, value, 1)

    def layers(self, *keys: str) -> int:
        """The number of layers, limited because per-layer tuples are built from it."""
        count = self.size(*keys)
        if count > MAX_LAYERS:
            raise ConfigError(f"{keys[0]}: got {count}; rule: at most {MAX_LAYERS} layers")
        return count

    def number_or_none(self, key: str, default: float | None = None) -> float | None:
        """A finite number, or None."""
        key, value = self._value((key,), default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{key}: got {shown(value)}; rule: a number")
        if isinstance(value, int) and abs(value) > MAX_DIM or not math.isfinite(value):
            raise ConfigError(f"{key}: got {shown(value)}; rule: a finite number below 2^31")
        return float(value)

    def rate(self, key: str, default: float = 0.0) -> float:
        """A dropout probability; null means none."""
        value = self.number_or_none(key, default)
        if value is None:
            return 0.0
        if not 0 <= value < 1:
            raise ConfigError(f"{key}: got {shown(value)}; rule: 0 <= p < 1")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false; null counts as false, as it does in the model code."""
        key, value = self._value((key,), default)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise ConfigError(f"{key}: got {shown(value)}; rule: true or false")
        return value

    def choice(self, key: str, default: str, valid: tuple[str, ...]) -> str:
        """A name out of a closed list."""
        key, value = self._value((key,), default)
        if not isinstance(value, str) or value not in valid:
            close = nearest(value, valid) if isinstance(value, str) else []
            rest = f"nearest: {', '.join(close)}" if close else f"valid: {', '.join(valid)}"
            raise ConfigError(f"{key}: got {shown(value)}, not known; {rest}")
        return value

    def activation(self, key: str, default: str) -> str:
        """A Hugging Face activation name."""
        return self.choice(key, default, ACTIVATIONS)

    def mapping(self, key: str) -> dict[str, Any]:
        """A nested object, empty when absent or null."""
        key, value = self._value((key,), None)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: got {shown(value)}; rule: an object")
        return value

    def indices(self, key: str) -> tuple[int, ...]:
        """A list of layer indices, empty when absent or null."""
        key, value = self._value((key,), None)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > MAX_LAYERS:
            raise ConfigError(f"{key}: got {shown(value)}; rule: a list of layer indices")
        return tuple(_checked_size(key, item, 0) for item in value)

    def note_unless(self, key: str, *harmless: object, why: str) -> None:
        """Note a key that the importer does not price, unless its value changes nothing."""
        self.read.add(key)
        if key in self.config and self.config[key] not in harmless:
            self.notes.append(f"config key {key!r} = {shown(self.config[key])}: {why}")

    def skip(self, *keys: str) -> None:
        """Mark keys that this family's own code never reads."""
        self.read.update(keys)


def _checked_size(key: str, value: object, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{key}: got {shown(value)}; rule: a whole number >= {minimum}")
    if value < minimum:
        raise ConfigError(f"{key}: got {shown(value)}; rule: >= {minimum}; nearest: {minimum}")
    if value > MAX_DIM:
        raise ConfigError(f"{key}: got {shown(value)}, beyond any real model; rule: at most 2^31")
    return value

"""Which packing a matrix gets where a format mixes several: by operator, layer and the model's heads.

The conditions are those llama.cpp's quantiser decides by (ggml-org/llama.cpp, src/llama-quant.cpp,
llama_tensor_get_type_impl); which of them a mixture uses is data, in profiles/weights/gguf.toml.
Checked by: unit/test_weight_files.py (sizes of published files), unit/test_weight_mixtures.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from memcalc.inputs.weights import KEEP, WeightFormat

#: Families that llama.cpp calls "70B" at 80 layers with grouped queries.
_SEVENTY: Final = frozenset({"llama", "mistral", "qwen2"})


class Facts(NamedTuple):
    """What a mixture's conditions ask about: the model, and the layer at hand (-1: none).

    groups: query heads for each key/value head.
    """

    family: str
    layers: int
    groups: int = 1
    experts: int = 0
    layer: int = -1
    tied: bool = False


def packing_of(fmt: WeightFormat, role: str, op: str, facts: Facts) -> str | None:
    """The packing a format gives a tensor of a role and operator; None: it stays as it is.

    The first rule that holds comes before the role; a tied embedding is stored as the head is.
    """
    roles = dict(fmt.roles)
    if role in ("linear", "experts"):
        for rule in fmt.rules:
            if op in rule.ops and _holds(rule.when, facts):
                return None if rule.packing == KEEP else rule.packing
    if role == "embedding" and facts.tied and "head" in roles:
        return roles["head"]
    return roles.get(role)


def _holds(when: str, facts: Facts) -> bool:
    layer, layers = facts.layer, facts.layers
    grouped = facts.groups >= 4
    checks = {
        "always": True,
        "more-bits": more_bits(layer, layers),
        "first-eighth": layer < layers // 8,
        "first-sixteenth": layer < layers // 16,
        "below-2": layer < 2,
        "below-4": layer < 4,
        "gqa-4": grouped,
        "eight-experts": facts.experts == 8,
        "seventy-billion": facts.family in _SEVENTY and layers == 80 and facts.groups > 1,
        "t5": facts.family in ("t5", "mt5"),
    }
    return checks[when]


def more_bits(layer: int, layers: int) -> bool:
    """The layers a mixture spends more on: the first and last eighth, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2

"""What one rank's dims are when a model serves: heads, columns, vocabulary rows, experts and their rows.

As `parallel/local.py` has them, and for vLLM's mixtures: without expert parallelism the width of every
expert is divided over tp x dp ranks, with it the experts are. Shared experts are divided over tp. Ranks of
dp have sequences of their own; their tokens meet at the experts. Token rows of this rank's experts are
`imbalance` times their share; its buffers have room for all rows.
Source: vllm-project/vllm, vllm/model_executor/layers/fused_moe/config.py (FusedMoEParallelConfig.make);
transformers 5.23, models/*/configuration_*.py (base_model_tp_plan).
Checked by: unit/test_serving_layouts.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

from memcalc.engine.blocks.vllm_moe import CHUNK
from memcalc.engine.parallel.local import local_values
from memcalc.inputs.parallel import ParallelPlan


def rank_values(
    values: dict[str, int], layout: ParallelPlan, vllm: bool, imbalance: float = 1.0
) -> dict[str, int]:
    """The dim values of one rank, from those of the whole model with this rank's sequences."""
    own = local_values(values, replace(layout, ep=1))
    if not vllm:
        return _of_transformers(own, values, layout)
    if "E" not in own:
        return own
    ranks, spread = layout.tp * layout.copies, layout.ep > 1
    tokens = own["b"] * own["s"] * layout.copies
    if layout.copies > 1:
        own["T_e"] = tokens
    rows = tokens * own["t"]
    own["e"] = own["E"] // ranks if spread else own["E"]
    own["m"] = own["m"] if spread else -(-own["m"] // ranks)
    own["n"] = -(-own["n"] // layout.tp)
    own["R"] = min(rows, math.ceil(rows * imbalance / ranks)) if spread else rows
    own["R_c"] = min(tokens, CHUNK) * own["t"]
    own["w_m"] = max(2 * own["m"], own["h"])
    return own


def _of_transformers(
    own: dict[str, int], values: dict[str, int], layout: ParallelPlan
) -> dict[str, int]:
    """transformers' plans divide every expert's width; latent attention is computed by every rank."""
    if "E" in own:
        own["m"], own["n"] = -(-own["m"] // layout.tp), -(-own["n"] // layout.tp)
    if "c" in own:
        own["a"], own["k"], own["g"] = values["a"], values["k"], values["g"]
    return own

"""Which models and setups a layout can run; what tp can divide is engine/parallel/tensor/tensor_rules.py's.

Every refusal is one line: what was got, the rule, and what is valid for this model.
Checked by: harness/test_layout.py.
"""

from __future__ import annotations

from memcalc.engine.parallel.context.context import check_shared
from memcalc.engine.parallel.experts.experts import check_divided
from memcalc.engine.parallel.tensor.tensor_rules import check_dtensor, check_parts
from memcalc.engine.plan import Plan
from memcalc.errors import ConfigError
from memcalc.harness.local import check_code
from memcalc.harness.ranks.layout import Layout


def check_layout(layout: Layout, plan: Plan) -> None:
    """Raise ConfigError unless this layout can run this plan."""
    _check_code(layout, plan)
    if layout.tp > 1:
        check_dtensor(layout.tp, layout.sp, plan)
    if layout.cp > 1:
        _check_context(layout, plan)
    if layout.ep > 1:
        _check_experts(layout, plan)
    if layout.pp > 1:
        _check_pipeline(layout, plan)


def _check_code(layout: Layout, plan: Plan) -> None:
    """What no division runs: other people's code, compiled code, updates of whole matrices."""
    check_code(plan)
    if plan.kernels.compiled:
        raise ConfigError(
            "compile: got compiled blocks on ranks; rule: eager code; valid: --stack torch"
        )
    if layout.fsdp or layout.tp > 1:
        check_parts(plan, "fsdp" if layout.fsdp else "tp")


def _check_context(layout: Layout, plan: Plan) -> None:
    """The ring's kernels are CUDA's alone; the rest as for an estimate."""
    if layout.cp_method == "ring" and plan.kernels.device == "cpu":
        raise ConfigError(
            f"cp: got {layout.cp} by ring on a CPU; rule: PyTorch's ring has kernels of CUDA alone; "
            "valid: --cp-method ulysses"
        )
    check_shared(layout.cp, layout.cp_method, layout.tp, plan)


def _check_experts(layout: Layout, plan: Plan) -> None:
    """As for an estimate; clipping would need a norm over two kinds of groups."""
    if plan.config.moe is None:
        raise ConfigError(f"ep: got {layout.ep}; rule: {plan.config.name} has no experts; valid: 1")
    check_divided(layout.ep, layout.dp, plan.config)
    if plan.resolved.setup.grad_clip:
        raise ConfigError(f"grad-clip: got true with ep {layout.ep}; valid: false")


def _check_pipeline(layout: Layout, plan: Plan) -> None:
    config, accum = plan.config, plan.resolved.grad_accum_steps
    if layout.pp > config.num_hidden_layers:
        raise ConfigError(
            f"pp: got {layout.pp}; rule: a block for each stage; valid: 1 to "
            f"{config.num_hidden_layers}, the layers of {config.name}"
        )
    if config.tie_word_embeddings:
        raise ConfigError(
            f"pp: got {layout.pp} for {config.name}, whose head is its embedding; rule: they are "
            "on different stages; valid: 1, or --set model.tie_word_embeddings=false"
        )
    if layout.schedule == "1f1b" and accum < layout.pp:
        raise ConfigError(
            f"grad-accum: got {accum}; rule: for 1f1b at least the {layout.pp} stages, a "
            f"micro-batch each; valid: {layout.pp} and more, or --schedule gpipe"
        )
    if plan.resolved.setup.reentrant:
        raise ConfigError("reentrant: got true with pp; rule: checkpoints that are not")

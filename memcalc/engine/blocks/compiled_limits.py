"""Which setups the description of a compiled block holds for; the rest is refused in one line.

Only what was held against PyTorch's compiler is estimated (oracle/test_compiled.py). Blocks with
experts, sinks, relative positions or ALiBi in eager attention keep other sets than the rules give;
selective checkpointing runs the block eagerly, since torch.compile stands back while its dispatch mode
is on; a reentrant checkpoint compiles the block twice.
"""

from __future__ import annotations

from memcalc.errors import ConfigError
from memcalc.inputs.model import ModelConfig
from memcalc.inputs.training import TrainingSetup

#: The compiler reduces rows of up to so many elements in one pass, without storing what it sums.
LONG_ROW = 1024
#: Said of every estimate of a compiled block.
ASSUMPTIONS = (
    "compiled blocks: what is stored and kept follows rules held against PyTorch 2.13.0's compiler "
    "on every dense family (its CUDA programs on tensors without data), not yet on a GPU",
    "compiled blocks: backward's peak is near the compiler's, which orders kernels by size; tokens "
    "and widths in multiples of 64, others are padded",
)


def check_compiled(
    config: ModelConfig, setup: TrainingSetup, attention: str, stack: str = "torch"
) -> None:
    """Raise ConfigError where the rules were not found to hold. attention: the kernel that runs."""
    alibi = config.position_embedding == "alibi"
    model = {
        "experts": config.moe is not None,
        "attention sinks": config.attention_sinks,
        "relative positions": config.position_embedding == "relative",
        "norms after the sum": config.norm_placement == "post-residual",
        "ALiBi in eager attention": alibi and attention == "eager",
    }
    for what, present in model.items():
        if present:
            raise ConfigError(
                f"compile: got {config.name}, a model with {what}; rule: only blocks compared with "
                "PyTorch's compiler; nearest valid: stack torch"
            )
    inside = stack == "torchtitan"  # the checkpoint is compiled with the block
    if setup.precision == "fp8-mixed" and not inside:
        raise ConfigError("compile: got precision 'fp8-mixed'; nearest valid: bf16-mixed")
    valid = ("none", "sac", "full") if inside else ("none", "full")
    if setup.reentrant or setup.recompute not in valid:
        got = "reentrant" if setup.reentrant else setup.recompute
        raise ConfigError(f"compile: got recompute {got!r}; valid: {', '.join(valid)}, full:N")

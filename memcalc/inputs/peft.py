"""PeftSetup: what a user states about parameter-efficient fine-tuning, in PEFT's own words.

Nothing here knows a byte. Which linears of a family a name means is in `inputs/peft_names.py`, what a
method adds to a layer in `engine/adapters.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from memcalc.errors import ConfigError, NotInThisVersionError
from memcalc.inputs.model import check_choice, check_dim, check_rate

METHODS: Final = (
    "lora", "dora", "qlora", "adalora", "adapter", "prefix", "prompt", "p-tuning", "ia3", "bitfit",
    "freeze",
)  # fmt: skip
#: Methods of the contract that cannot be estimated yet.
LATER: Final = ("adapter", "prefix", "prompt", "p-tuning", "adalora")
#: Methods with matrices of low rank beside a linear.
LOW_RANK: Final = ("lora", "dora", "qlora", "adalora")
#: Methods that add parameters of their own.
ADDS: Final = (*LOW_RANK, "ia3")
DTYPES: Final = ("fp32", "bf16", "fp16")
#: Rank of PEFT's LoraConfig where none is stated.
DEFAULT_RANK: Final = 8


@dataclass(frozen=True, kw_only=True)
class PeftSetup:
    """How a model is fine-tuned without training all of it. Raises ConfigError.

    rank: of low-rank matrices. targets: linears by their names in the model's code (q_proj, c_attn),
    by memcalc's, or all-linear; empty means PEFT's default for the family. dropout: before the low-rank
    matrices. dtype: of adapters; None is PEFT's default, fp32 whatever the model's 16-bit dtype
    (autocast_adapter_dtype). layers: of freeze:N, the last N layers train. weights: how the frozen
    weights are held: a dtype, or a format of `inputs/weights.py` for the blocks' linears beside what the
    precision says of the rest; None is the precision's (fp32 under autocast), nf4 with qlora.
    Checked by: unit/test_peft_setup.py.
    """

    method: str = "lora"
    rank: int | None = None
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    dtype: str | None = None
    layers: int | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        check_choice("peft", self.method, METHODS)
        if self.method in LATER:
            raise NotInThisVersionError(
                f"peft: {self.method} is not in this version; valid: "
                f"{', '.join(name for name in METHODS if name not in LATER)}"
            )
        if self.rank is not None:
            check_dim("lora_rank", self.rank)
        check_rate("lora_dropout", self.dropout)
        if self.dtype is not None:
            check_choice("lora_dtype", self.dtype, DTYPES)
        if self.layers is not None:
            check_dim("peft freeze:N", self.layers)
        if self.method == "qlora" and self.weights in DTYPES:
            raise ConfigError(f"weights: got {self.weights} with qlora; rule: nf4, fp4 or int8")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if (self.method == "freeze") != (self.layers is not None):
            raise ConfigError(
                f"peft: got {self.method} with layers={self.layers}; rule: freeze:N, the last N layers "
                "train; nearest valid: freeze:2"
            )
        low_rank = self.method in LOW_RANK
        stated = {
            "lora_rank": self.rank is not None and not low_rank,
            "lora_dropout": self.dropout > 0 and not low_rank,
            "lora_dtype": self.dtype is not None and self.method not in ADDS,
            "weights": self.packed is not None and not low_rank,
            "lora_targets": bool(self.targets) and self.method == "bitfit",
        }
        for name, wrong in stated.items():
            if wrong:
                raise ConfigError(f"{name}: got one with peft {self.method}, which has none")

    @property
    def packed(self) -> str | None:
        """The format the blocks' linears are packed in; None where they are plain numbers."""
        stated = self.weights or ("nf4" if self.method == "qlora" else None)
        return None if stated in (None, *DTYPES) else stated

    @property
    def low_rank(self) -> int:
        """The rank of low-rank matrices; 0 where the method has none."""
        return (self.rank or DEFAULT_RANK) if self.method in LOW_RANK else 0

"""PeftSetup: what a user states about parameter-efficient fine-tuning, in PEFT's own words.

Nothing here knows a byte. Which linears of a family a name means is in `inputs/peft_names.py`, what a
method adds to a layer in `engine/adapters/linear.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from memcalc.errors import ConfigError
from memcalc.inputs.model import check_choice, check_dim, check_rate

METHODS: Final = (
    "lora", "dora", "qlora", "adalora", "adapter", "prefix", "prompt", "p-tuning", "ia3", "bitfit",
    "freeze",
)  # fmt: skip
#: Methods with matrices of low rank beside a linear.
LOW_RANK: Final = ("lora", "dora", "qlora", "adalora")
#: Methods that put virtual tokens before the real ones, or before every layer's keys and values.
VIRTUAL: Final = ("prefix", "prompt", "p-tuning")
#: Methods that add parameters of their own.
ADDS: Final = (*LOW_RANK, "ia3", *VIRTUAL, "adapter")
DTYPES: Final = ("fp32", "bf16", "fp16")
#: Rank of PEFT's LoraConfig where none is stated; of AdaLoraConfig's init_r.
DEFAULT_RANK: Final = 8
DEFAULT_INIT_RANK: Final = 12
#: Virtual tokens where none are stated; PEFT has no default, its guides take 20.
DEFAULT_VIRTUAL_TOKENS: Final = 20


KINDS: Final = ("houlsby", "pfeiffer", "parallel")
#: Width of the stream over a bottleneck's, by kind: the `adapters` library's configurations.
REDUCTIONS: Final = {"houlsby": 16.0, "pfeiffer": 16.0, "parallel": 2.0}


@dataclass(frozen=True, kw_only=True)
class PeftSetup:
    """How a model is fine-tuned without training all of it. Raises ConfigError.

    rank: of low-rank matrices; of adalora what PEFT calls init_r. targets: linears by their names in the
    model's code (q_proj, c_attn), by memcalc's, or all-linear; empty means PEFT's default for the family.
    dropout: before the low-rank matrices. dtype: of adapters; None is PEFT's default, fp32 whatever the
    model's 16-bit dtype (autocast_adapter_dtype). layers: of freeze:N, the last N layers train. weights:
    how the frozen weights are held: a dtype, or a format of `inputs/weights.py` for the blocks' linears
    beside what the precision says of the rest; None is the precision's (fp32 under autocast), nf4 with
    qlora. virtual_tokens: of prefix, prompt and p-tuning. projection: of prefix, an MLP makes the prefix.
    encoder_width: hidden size of that MLP and of p-tuning's; None: as wide as what it makes of a token
    (PEFT). kind, reduction, width: of bottleneck adapters; the bottleneck is hidden size over reduction,
    or `width`.
    Checked by: unit/test_peft_setup.py.
    """

    method: str = "lora"
    rank: int | None = None
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    dtype: str | None = None
    layers: int | None = None
    weights: str | None = None
    virtual_tokens: int | None = None
    projection: bool = False
    encoder_width: int | None = None
    kind: str | None = None
    reduction: float | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        check_choice("peft", self.method, METHODS)
        dims = {
            "lora_rank": self.rank, "peft freeze:N": self.layers, "adapter_width": self.width,
            "virtual_tokens": self.virtual_tokens, "prompt_width": self.encoder_width,
        }  # fmt: skip
        for name, value in dims.items():
            if value is not None:
                check_dim(name, value)
        check_rate("lora_dropout", self.dropout)
        if self.dtype is not None:
            check_choice("lora_dtype", self.dtype, DTYPES)
        if self.kind is not None:
            check_choice("adapter_kind", self.kind, KINDS)
        if self.reduction is not None and not self.reduction >= 1:
            raise ConfigError(f"adapter_reduction: got {self.reduction:g}; rule: >= 1; nearest: 1")
        if self.method == "qlora" and self.weights in DTYPES:
            raise ConfigError(f"weights: got {self.weights} with qlora; rule: nf4, fp4 or int8")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if (self.method == "freeze") != (self.layers is not None):
            raise ConfigError(
                f"peft: got {self.method} with layers={self.layers}; rule: freeze:N, the last N layers "
                "train; nearest valid: freeze:2"
            )
        if self.reduction is not None and self.width is not None:
            raise ConfigError(
                "adapter_width: got one beside adapter_reduction; rule: one of the two"
            )
        low_rank, virtual = self.method in LOW_RANK, self.method in VIRTUAL
        makes = self.method == "p-tuning" or (self.method == "prefix" and self.projection)
        bottleneck = self.method == "adapter"
        stated = {
            "lora_rank": self.rank is not None and not low_rank,
            "lora_dropout": self.dropout > 0 and not low_rank,
            "lora_dtype": self.dtype is not None and (self.method not in ADDS or virtual),
            "weights": self.packed is not None and self.method in ("ia3", "bitfit", "adapter"),
            "lora_targets": bool(self.targets)
            and (self.method in ("bitfit", "adapter") or virtual),
            "virtual_tokens": self.virtual_tokens is not None and not virtual,
            "prefix_projection": self.projection and self.method != "prefix",
            "prompt_width": self.encoder_width is not None and not makes,
            "adapter_kind": self.kind is not None and not bottleneck,
            "adapter_reduction": self.reduction is not None and not bottleneck,
            "adapter_width": self.width is not None and not bottleneck,
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
        default = DEFAULT_INIT_RANK if self.method == "adalora" else DEFAULT_RANK
        return (self.rank or default) if self.method in LOW_RANK else 0

    @property
    def tokens(self) -> int:
        """Virtual tokens; 0 where the method has none."""
        return (self.virtual_tokens or DEFAULT_VIRTUAL_TOKENS) if self.method in VIRTUAL else 0

    @property
    def bottleneck_kind(self) -> str:
        """Where bottleneck adapters sit; Houlsby's where none is stated."""
        return self.kind or KINDS[0]

    def bottleneck(self, hidden_size: int) -> int:
        """The width of bottleneck adapters. Raises ConfigError where the reduction leaves none."""
        if self.width is not None:
            return self.width
        reduction = self.reduction or REDUCTIONS[self.bottleneck_kind]
        if hidden_size // reduction < 1:
            raise ConfigError(
                f"adapter_reduction: got {reduction:g}; rule: at most the hidden size; nearest valid: "
                f"{hidden_size}"
            )
        return int(hidden_size // reduction)

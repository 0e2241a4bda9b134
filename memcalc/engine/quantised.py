"""Quantised weights: what a weight format makes of the ledger's leaves, in memory and in a file.

A format decides by role (a linear's matrix, experts, embedding, head, ...), which follows from a leaf's
name and shape; parameters are counted nowhere but in the ledger. Each packed matrix is several tensors
(codes, scales, tables), each an allocation of its own.
Checked by: oracle/test_bitsandbytes.py, oracle/test_quantised_modules.py, unit/test_weight_files.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from memcalc.engine.dtypes import ITEMSIZE
from memcalc.engine.plan import Plan
from memcalc.engine.quantised_mixtures import Facts, packing_of
from memcalc.engine.states import all_leaves, block_of, names_expert
from memcalc.engine.tensors import Tensor
from memcalc.errors import ConfigError
from memcalc.inputs.weights import Packing, WeightFormat

_TABLES: Final = {
    "embedding": "embedding", "position_embedding": "position", "token_type_embedding": "position",
    "relative_attention_bias": "position", "lm_head": "head",
}  # fmt: skip


class Held(NamedTuple):
    """One parameter as a format holds it. tensors: (name of the part, bytes) of each allocation."""

    name: str
    role: str
    packing: str
    elements: int
    tensors: tuple[tuple[str, int], ...]
    file_bytes: int

    @property
    def resident_bytes(self) -> int:
        return sum(size for _, size in self.tensors)


class Weights(NamedTuple):
    """The weights of a model, or of one rank's part of it, in a format.

    parameters: elements; quantised_parameters: those stored in a packing of fewer bits than the dtype the
    model is loaded in. leaves: every parameter of every layer.
    """

    format: WeightFormat
    base: str
    leaves: tuple[Held, ...]

    @property
    def parameters(self) -> int:
        return sum(held.elements for held in self.leaves)

    @property
    def quantised_parameters(self) -> int:
        return sum(held.elements for held in self.leaves if held.packing != self.base)

    @property
    def resident_bytes(self) -> int:
        """Bytes of tensors in memory, before an allocator rounds them."""
        return sum(held.resident_bytes for held in self.leaves)

    @property
    def file_bytes(self) -> int:
        """Bytes of tensors in a checkpoint; headers, tokenizers and other metadata come on top."""
        step = self.format.alignment
        return sum(-(-held.file_bytes // step) * step for held in self.leaves)

    @property
    def bits_per_weight(self) -> float:
        """Bits in memory for each element, over all tensors."""
        return 8 * self.resident_bytes / self.parameters

    @property
    def kept_bytes(self) -> int:
        """Bytes of what stays in the dtype the model is loaded in."""
        return sum(held.resident_bytes for held in self.leaves if held.packing == self.base)

    def by_role(self) -> dict[str, int]:
        """Resident bytes of each role that the model has."""
        total: dict[str, int] = {}
        for held in self.leaves:
            total[held.role] = total.get(held.role, 0) + held.resident_bytes
        return total

    def allocated_bytes(self, rounding: int = 512) -> int:
        """Resident bytes with every tensor rounded up as PyTorch's CUDA allocator does."""
        sizes = (size for held in self.leaves for _, size in held.tensors)
        return sum(-(-size // rounding) * rounding for size in sizes)


def role_of(name: str, rank: int) -> str:
    """What a format decides by, from a leaf's name and number of dims: one of `weights.ROLES`."""
    op = operator_of(name)
    if names_expert(name):
        return "experts" if rank == 3 else "expert-vectors"
    if rank < 2:
        return "vector"
    return "router" if op == "router" else _TABLES.get(op, "linear")


def operator_of(name: str) -> str:
    """The ledger's operator a parameter belongs to: `layers.3.q_proj.weight` is of `q_proj`."""
    return name.rsplit(".", 2)[-2] if "." in name else name


def weights_of_plan(plan: Plan, fmt: WeightFormat, base: str = "bf16") -> Weights:
    """The weights of a plan's rank; base: the dtype of what stays unpacked.

    Where fine-tuning trains some leaves beside a frozen model, those are not among them.
    Raises ConfigError where the format does not know the model's family or a matrix does not fit it.
    """
    structure, runs = plan.structure(plan.keeps_gradients)
    family = plan.config.model_type
    check_family(fmt, family)
    config = plan.config
    groups = config.num_attention_heads // config.num_key_value_heads
    experts = config.moe.num_experts if config.moe else 0
    facts = Facts(
        family, config.num_hidden_layers, groups, experts, tied=config.tie_word_embeddings
    )
    leaves = all_leaves(structure, runs)
    if plan.kernels.adapter is not None:
        leaves = [leaf for leaf in leaves if not leaf.requires_grad]
    return weights_of(leaves, plan.values, fmt, facts, base)


def check_family(fmt: WeightFormat, family: str) -> None:
    """Raise ConfigError where a format is defined for other families only."""
    if fmt.families and family not in fmt.families:
        raise ConfigError(
            f"weights: got {fmt.name} for a model of type {family}; rule: {fmt.name} is defined for "
            f"{', '.join(fmt.families)}; nearest valid: int8, nf4, gptq"
        )


def weights_of(
    leaves: Iterable[Tensor],
    values: Mapping[str, int],
    fmt: WeightFormat,
    facts: Facts,
    base: str = "bf16",
) -> Weights:
    """The weights of a model's leaves, those of all layers in order (`states.all_leaves`).

    facts.layer: the layer before the first of these leaves, -1 where they begin with the model.
    """
    found: list[Held] = []
    known: dict[tuple[int, str], Held] = {}
    layer, seen = facts.layer, set[int]()
    for leaf in leaves:
        if block_of(leaf) >= 0 and (not seen or id(leaf) in seen or _is_new(leaf, found)):
            layer += 1
            seen = set()
        if block_of(leaf) >= 0:
            seen.add(id(leaf))
        packing = _chosen(leaf, values, fmt, facts._replace(layer=layer))
        label = base if packing is None else packing.name
        key = (id(leaf), label)
        if key not in known:
            known[key] = held(leaf, packing, values, fmt, base)
        found.append(known[key])
    return Weights(fmt, base, tuple(found))


def _is_new(leaf: Tensor, found: list[Held]) -> bool:
    """Whether a leaf is of another traced block than the one before it."""
    last = found[-1].name.split(".", 2)
    return last[0] == "layers" and int(last[1]) != block_of(leaf)


def _chosen(
    leaf: Tensor, values: Mapping[str, int], fmt: WeightFormat, facts: Facts
) -> Packing | None:
    """The packing of a leaf, None where it stays as it is; one that fits its rows and columns."""
    role = role_of(leaf.name, len(leaf.shape))
    name = packing_of(fmt, role, operator_of(leaf.name), facts)
    if name is None:
        return None
    _, rows, columns = matrices(leaf, values)
    packing = fmt.packing(name)
    while not packing.fits(rows, columns):
        if packing.fallback is None:
            high, wide = packing.multiple
            raise ConfigError(
                f"weights: got {fmt.name} for {leaf.name} of {rows} x {columns}; rule: multiples of "
                f"{high} x {wide}; nearest valid: another format"
            )
        packing = fmt.packing(packing.fallback)
    return packing


def matrices(leaf: Tensor, values: Mapping[str, int]) -> tuple[int, int, int]:
    """(number, rows, columns) of a leaf's matrices: one for each expert; a vector is one row."""
    sizes = [size.value(values) for size in leaf.shape]
    if len(sizes) == 3:
        return sizes[0], sizes[1], sizes[2]
    return (1, sizes[0], sizes[1]) if len(sizes) == 2 else (1, 1, sizes[0])


def held(
    leaf: Tensor, packing: Packing | None, values: Mapping[str, int], fmt: WeightFormat, base: str
) -> Held:
    """One leaf in a packing; None: as plain numbers of the base dtype, or of a dense format's own."""
    count, rows, columns = matrices(leaf, values)
    role = role_of(leaf.name, len(leaf.shape))
    elements = count * rows * columns
    if packing is None:
        dtype = fmt.dtype or base
        size = elements * ITEMSIZE[dtype]
        return Held(leaf.name, role, dtype, elements, (("weight", size),), size)
    if fmt.apart and ".expert_gate_up." in leaf.name:
        count, rows = 2 * count, rows // 2
    tensors = tuple(
        (part.name, part.bytes_of(rows, columns))
        for part in packing.parts
        if part.stored in ("both", "memory")
    )
    apart = count if fmt.apart else 1
    joined = 1 if fmt.apart else count
    return Held(
        name=leaf.name,
        role=role,
        packing=packing.name,
        elements=elements,
        tensors=tuple((name, joined * size) for name, size in tensors) * apart,
        file_bytes=count * packing.bytes_of(rows, columns, "file"),
    )

"""Which process groups a rank of each training stack communicates in: one table, with its sources.

A stack creates more groups than it uses, and NCCL makes a communicator at the first collective of a
group, not when the group is created (torch.distributed.init_process_group without device_id, as all of
these call it). A rule is certain where the stack's own training loop calls a collective on that group;
the others are used by options or by versions of the stack and count in the upper figure only.
Sources: the file named beside each stack, read in its public repository.
Checked by: unit/test_communication.py.
"""

from __future__ import annotations

from typing import Final, NamedTuple

WORLD: Final = ("tp", "cp", "dp", "pp")


class GroupRule(NamedTuple):
    """One process group: the axes it spans, what runs on it, and when it communicates.

    axes: tp, cp, dp, pp; shard and replica, which divide dp x cp; etp, ep and edp, which divide
    tp x cp x dp for experts; embedding, the first and last stage. use: collective | stages (sends to
    neighbouring stages) | ring (sends round the group) | all-to-all. when: facts of the plan that must
    all hold (`communication.facts`).
    """

    name: str
    axes: tuple[str, ...]
    use: str = "collective"
    when: tuple[str, ...] = ()
    certain: bool = True


class StackGroups(NamedTuple):
    """A stack's rules. reuses: groups that are one object where their ranks are equal.

    "world": a group of all ranks is the default group; "ranks": any two equal groups are one, but for
    the default group; "": each name is a group of its own.
    """

    rules: tuple[GroupRule, ...]
    reuses: str
    source: str


_EXPERTS: Final = (
    GroupRule("ep", ("ep",), "all-to-all", ("ep",)),
    GroupRule("expert data", ("edp",), when=("ep",)),
)
_TORCH: Final = (
    GroupRule("world", WORLD, certain=False),
    GroupRule("dp", ("dp", "cp"), when=("whole",)),
    GroupRule("shard", ("shard",), when=("sharded",)),
    GroupRule("replica", ("replica",), when=("sharded",)),
    GroupRule("tp", ("tp",)),
    GroupRule("cp", ("cp",)),
    GroupRule("pp", ("pp",), "stages"),
    *_EXPERTS,
)
#: The seed is broadcast and a barrier waits on all ranks; the gradient norm is summed over stages.
_TORCHTITAN: Final = (
    *_TORCH,
    GroupRule("world", WORLD),
    GroupRule("pp", ("pp",)),
    GroupRule("loss", ("dp", "cp"), when=("hybrid",)),
)
#: Kernels are compiled behind a barrier on all ranks; the norm of gradients is summed over the model.
_MEGATRON: Final = (
    GroupRule("world", WORLD),
    GroupRule("tp", ("tp",)),
    GroupRule("cp", ("cp",), "ring"),
    GroupRule("dp with cp", ("dp", "cp")),
    GroupRule("pp", ("pp",), "stages"),
    GroupRule("mp", ("tp", "pp"), when=("whole",)),
    GroupRule("distributed optimizer", WORLD, when=("sharded",), certain=False),
    GroupRule("embedding", ("embedding",), when=("tied", "end stage")),
    GroupRule("dp", ("dp",), certain=False),
    GroupRule("tp with dp", ("tp", "dp"), certain=False),
    GroupRule("tp with dp and cp", ("tp", "dp", "cp"), certain=False),
    GroupRule("tp with cp", ("tp", "cp"), when=("experts",)),
    GroupRule("ep", ("ep",), "all-to-all", ("experts",)),
    GroupRule("expert data", ("edp",), when=("experts",)),
    GroupRule("expert tp", ("etp",), when=("experts",)),
    GroupRule("expert tp with ep", ("etp", "ep"), when=("experts",), certain=False),
    GroupRule("expert tp with ep and pp", ("etp", "ep", "pp"), when=("experts",), certain=False),
)
_DEEPSPEED: Final = (
    GroupRule("world", WORLD, certain=False),
    GroupRule("dp", ("dp", "cp")),
    GroupRule("tp", ("tp",)),
    GroupRule("cp", ("cp",), "all-to-all"),
    GroupRule("pp", ("pp",), "stages"),
    *_EXPERTS,
)
#: DeepSpeed's pipeline grid makes its own groups beside Megatron's.
_MEGATRON_DEEPSPEED: Final = (
    *(rule for rule in _MEGATRON if rule.name not in ("distributed optimizer", "mp")),
    GroupRule("mp", ("tp", "pp")),
    GroupRule("grid dp", ("dp", "cp"), certain=False),
    GroupRule("grid pp", ("pp",), certain=False),
    GroupRule("grid model", ("tp", "pp"), certain=False),
    GroupRule("grid slice", ("tp",), certain=False),
)
#: A barrier waits on the default group; tied parameters are looked up over a group of its own.
_NANOTRON: Final = (
    GroupRule("world", WORLD),
    GroupRule("world_pg", WORLD),
    GroupRule("tp", ("tp",)),
    GroupRule("cp", ("cp",), "ring"),
    GroupRule("dp", ("dp",)),
    GroupRule("pp", ("pp",), "stages"),
    GroupRule("mp", ("tp", "pp")),
    GroupRule("tied weights", ("embedding",), when=("tied", "end stage")),
    GroupRule("tp and cp", ("tp", "cp"), certain=False),
    *_EXPERTS,
)
#: Stacks that run another one's process groups.
SAME_GROUPS: Final = {
    "torch-compile": "torch",
    "hf": "torch",
    "fsdp1": "torch",
    "lightning": "torch",
}
STACK_GROUPS: Final = {
    "torch": StackGroups(_TORCH, "world", "torch/distributed/device_mesh.py"),
    "torchtitan": StackGroups(
        _TORCHTITAN, "world", "torchtitan/distributed/parallel_dims.py, distributed/utils.py"
    ),
    "megatron": StackGroups(
        _MEGATRON, "", "megatron/core/parallel_state.py, megatron/training/initialize.py"
    ),
    "deepspeed": StackGroups(_DEEPSPEED, "", "deepspeed/utils/groups.py"),
    "deepspeed-0.8": StackGroups(_DEEPSPEED, "", "deepspeed/utils/groups.py"),
    "megatron-deepspeed": StackGroups(
        _MEGATRON_DEEPSPEED, "", "megatron/core/parallel_state.py, deepspeed/utils/groups.py"
    ),
    "nanotron": StackGroups(
        _NANOTRON, "ranks", "nanotron/parallel/context.py, parallel/tied_parameters.py"
    ),
}

"""Communicators of a rank and their driver memory: published observations, and what must hold."""

from __future__ import annotations

import pytest

from memcalc.engine.parallel.network.communication import (
    CommunicationBytes,
    Communicator,
    Fabric,
    communication_bytes,
    communicator_bytes,
    communicators,
    fabric_of,
)
from memcalc.engine.parallel.network.process_groups import STACK_GROUPS
from memcalc.inputs.clusters import load_cluster
from memcalc.inputs.parallel import ParallelPlan, with_degrees
from memcalc.units import MIB

NODE = Fabric("switch", 8)


def made(
    stack: str, fabric: Fabric = NODE, stage: int = 0, **plan: object
) -> dict[str, Communicator]:
    """Communicators by group; tied and experts are of the model, the rest of the plan."""
    tied, experts = bool(plan.pop("tied", False)), bool(plan.pop("experts", False))
    layout = with_degrees(ParallelPlan(**plan))  # type: ignore[arg-type]
    return {c.group: c for c in communicators(layout, stack, fabric, stage, tied, experts)}


def of(stack: str, fabric: Fabric = NODE, stage: int = 0, **plan: object) -> CommunicationBytes:
    return communication_bytes(made(stack, fabric, stage, **plan).values(), fabric)


def certain(found: dict[str, Communicator]) -> set[str]:
    return {name for name, one in found.items() if one.certain}


def collective(ranks: int, fabric: Fabric = NODE) -> CommunicationBytes:
    one = Communicator("dp", ranks, frozenset({"collective"}), 0, 0, ranks > fabric.gpus, True)
    return communicator_bytes(one, fabric)


@pytest.mark.parametrize(("ranks", "mib"), [(2, 342), (4, 392), (8, 392)])
def test_one_communicator_on_a_hopper_node_is_what_was_observed(ranks, mib):
    assert collective(ranks).expected == mib * MIB


@pytest.mark.parametrize(
    ("ranks", "mib", "source"),
    [
        (2, 544, "four A100 on NVLink, NCCL issue 964"),
        (4, 688, "four A100 on NVLink, NCCL issue 964"),
        (8, 576, "eight GB200, NCCL 2.30.4, sgl-project/sglang pull request 30908"),
    ],
)
def test_other_nodes_lie_in_the_band(ranks, mib, source):
    figure = collective(ranks)
    assert figure.low <= mib * MIB <= figure.high, source


def test_a_first_all_to_all_on_eight_gpus_is_what_was_observed():
    """4.34 - 1.06 GB on 8 H100s (NCCL issue 1685); the buffers alone are 7 x 32 x 12 MiB."""
    one = made("torchtitan", gpus=8, fsdp=True, tp=1, ep=8, experts=True, etp=1)["world"]
    alone = one._replace(uses=frozenset({"all-to-all"}))
    figure = communicator_bytes(alone, NODE)
    assert figure.expected == pytest.approx(3.28e9, rel=1e-6)
    assert figure.low == 7 * 32 * 12 * MIB
    assert figure.high > figure.expected


def test_groups_of_all_ranks_are_one_communicator_in_pytorch_and_two_in_nanotron():
    assert list(made("torch", gpus=8)) == ["world"]
    assert certain(made("torch", gpus=8)) == {"world"}
    assert list(made("torch", gpus=8, fsdp=True)) == ["world"]
    assert list(made("nanotron", gpus=8)) == ["world", "world_pg"]
    assert {"world", "dp with cp"} <= certain(made("megatron", gpus=8))


def test_a_hybrid_layout_has_a_group_a_sharding_axis():
    found = made("torchtitan", gpus=16, fsdp=True, shard=8)
    assert {name: one.ranks for name, one in found.items()} == {
        "world": 16, "shard": 8, "replica": 2,
    }  # fmt: skip
    assert not found["shard"].spans
    assert found["replica"].spans


def test_megatron_makes_a_group_a_name():
    """tp 2, pp 2, dp 2 with Megatron's distributed optimizer: the embedding's only on end stages."""
    plan = {"gpus": 16, "tp": 2, "pp": 4, "zero": 1, "tied": True}
    first, inner = made("megatron", **plan), made("megatron", stage=1, **plan)
    assert certain(first) == {"world", "tp", "dp with cp", "pp", "embedding"}
    assert certain(inner) == {"world", "tp", "dp with cp", "pp"}
    assert first["tp"].ranks == first["dp with cp"].ranks == first["embedding"].ranks == 2
    assert "mp" in certain(made("megatron", gpus=16, tp=2, pp=4))


def test_megatron_with_every_axis_is_in_the_published_range():
    """Of about 20 groups a rank 6 to 10 communicate; ms-swift pull request 9602 warms up 8 dense ones."""
    found = made(
        "megatron", gpus=64, tp=2, pp=4, cp=2, ep=2, etp=2, zero=1, tied=True, experts=True
    )
    assert 6 <= len(certain(found)) <= 10
    assert len(found) <= 20


@pytest.mark.parametrize(
    ("stage", "plan", "local", "remote"),
    [
        (0, {"gpus": 8, "pp": 2}, 1, 0),
        (1, {"gpus": 8, "pp": 4}, 2, 0),
        (0, {"gpus": 16, "pp": 4}, 1, 0),
        (1, {"gpus": 16, "pp": 4}, 1, 1),
        (0, {"gpus": 32, "pp": 4}, 0, 1),
        (0, {"gpus": 32, "pp": 4, "vpp": 2, "schedule": "interleaved"}, 0, 2),
        (0, {"gpus": 8, "pp": 2, "vpp": 2, "schedule": "interleaved"}, 1, 0),
    ],
)
def test_stages_reach_their_neighbours_inside_and_outside_a_node(stage, plan, local, remote):
    one = made("torch", stage=stage, **plan)["pp"]
    assert (one.local, one.remote) == (local, remote)


def test_two_stages_in_a_node_connect_all_channels_of_one_peer():
    figure = communicator_bytes(made("torch", gpus=8, pp=2)["pp"], NODE)
    assert figure.low == 32 * 12 * MIB


def test_a_group_that_leaves_the_node_sends_over_the_networks_channels():
    inside = communicator_bytes(made("megatron", gpus=8, pp=4, stage=1)["pp"], NODE)
    across = communicator_bytes(made("megatron", gpus=16, pp=4, stage=1)["pp"], NODE)
    assert inside.low == 2 * 32 * 12 * MIB
    assert across.low == 2 * 12 * MIB + 64 * MIB


def test_context_parallel_sends_round_a_ring_or_to_all():
    ring = made("megatron", gpus=8, cp=8)["cp"]
    whole = made("megatron", gpus=8, cp=8, cp_method="ulysses")["cp"]
    assert (ring.local, whole.local) == (2, 7)
    assert made("torch", gpus=16, cp=8)["cp"].uses == {"collective"}


def test_buffers_of_cards_without_peer_access_lie_in_host_memory():
    host = fabric_of(load_cluster("4x-rtx-4090-pcie"))
    figure = of("torch", host, gpus=4)
    assert figure.low == 0
    assert figure.expected < of("torch", gpus=4).low


def test_a_rack_is_one_fabric():
    rack = fabric_of(load_cluster("gb200-nvl72"))
    assert rack.gpus == 72
    assert not made("torch", rack, gpus=64, fsdp=True)["world"].spans
    assert made("torch", NODE, gpus=64, fsdp=True)["world"].spans
    assert fabric_of(None, 4) == Fabric("switch", 4)


@pytest.mark.parametrize("stack", STACK_GROUPS)
@pytest.mark.parametrize("topology", ["switch", "mesh", "host"])
@pytest.mark.parametrize(
    "plan",
    [
        {"gpus": 8},
        {"gpus": 8, "fsdp": True, "ep": 8, "experts": True},
        {"gpus": 64, "tp": 8, "pp": 4, "zero": 1, "tied": True},
        {"gpus": 64, "tp": 2, "pp": 2, "cp": 4, "ep": 8, "zero": 1, "experts": True},
    ],
    ids=["dp", "ep", "3d", "all"],
)
def test_the_band_holds_the_estimate(stack, topology, plan):
    fabric = Fabric(topology, 8)
    figure = of(stack, fabric, **plan)
    assert 0 <= figure.low <= figure.expected <= figure.high
    assert len(figure.reasons) == len(made(stack, fabric, **plan))


@pytest.mark.parametrize("stack", STACK_GROUPS)
def test_one_gpu_communicates_with_nobody(stack):
    assert of(stack, gpus=1, tied=True, experts=True) == CommunicationBytes(0, 0, 0)


def test_reasons_name_what_is_not_certain_and_what_was_not_observed():
    reasons = of("megatron", gpus=32, tp=2, zero=1).reasons
    assert any("high figure only" in reason for reason in reasons)
    assert any(reason.startswith("world of 32") and "not observed" in reason for reason in reasons)


def test_a_stack_without_a_table_has_pytorchs_groups():
    assert made("of my own", gpus=8, tp=2) == made("torch", gpus=8, tp=2)

"""Which wires a group talks over, and the seconds of a collective on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memcalc.engine.device_side import Device, device_of
from memcalc.engine.timing import topology
from memcalc.engine.timing.topology import Group, exchange_s, group_of, stride_of, tier_of, wires_of
from memcalc.inputs.clusters import load_cluster
from memcalc.inputs.parallel import ParallelPlan, with_degrees
from memcalc.inputs.rates import LinkRate, rates_of

GB = 10**9
#: Eight GPUs a node; 300 GB/s and 10 us inside, 25 GB/s a GPU and 30 us between.
NODE = topology.Wires(8, "link", LinkRate(1e-5, 300e9), LinkRate(3e-5, 25e9))
KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "send")


def wires(gpu: str | None = None, cluster: str | None = None, **layout: int) -> topology.Wires:
    device = device_of(gpu, cluster=cluster)
    assert device.gpu is not None
    return wires_of(device, with_degrees(ParallelPlan(**layout)), rates_of(device.gpu))


def test_tp_lies_in_a_node_and_dp_spans_nodes():
    """64 GPUs in nodes of 8: tp 8 within one, dp 8 with one rank in each."""
    layout = with_degrees(ParallelPlan(gpus=64, tp=8))
    assert group_of(8, stride_of("tp", layout), NODE) == Group(8, 8, 1)
    assert group_of(8, stride_of("dp", layout), NODE) == Group(8, 1, 8)


@pytest.mark.parametrize(
    ("axis", "ranks", "group"),
    [
        ("tp", 2, Group(2, 2, 1)),
        ("cp", 2, Group(2, 2, 1)),
        ("dp", 8, Group(8, 2, 4)),  # 4 ranks apart: two to a node
        ("shard", 16, Group(16, 4, 4)),  # dp x cp, 2 apart
        ("pp", 2, Group(2, 1, 2)),  # 32 ranks apart
        ("ep", 8, Group(8, 4, 2)),  # beside tp 2
    ],
)
def test_axes_from_the_innermost_are_tp_cp_dp_pp(axis, ranks, group):
    layout = with_degrees(ParallelPlan(gpus=64, tp=2, cp=2, pp=2, ep=8, fsdp=True))
    stride = 4 if axis == "dp" else stride_of(axis, layout, expert_split=2)
    assert group_of(ranks, stride, NODE) == group


def test_replicas_are_a_sharding_group_apart():
    layout = with_degrees(ParallelPlan(gpus=32, fsdp=True, shard=8))
    assert group_of(4, stride_of("replica", layout), NODE) == Group(4, 1, 4)
    assert group_of(8, stride_of("shard", layout), NODE) == Group(8, 8, 1)


def test_a_group_in_one_node_is_alpha_and_bus_bytes():
    """8 ranks, 8 GB: 7/8 pass each GPU at 300 GB/s; an all-reduce twice."""
    group = Group(8, 8, 1)
    assert exchange_s("all_gather", 8 * GB, group, NODE) == pytest.approx(1e-5 + 7 / 300)
    assert exchange_s("all_reduce", 8 * GB, group, NODE) == pytest.approx(1e-5 + 14 / 300)
    assert exchange_s("send", GB, Group(2, 2, 1), NODE) == pytest.approx(1e-5 + 1 / 300)
    assert tier_of(group, NODE) == "link"


def test_between_nodes_the_cards_of_a_groups_own_ranks_are_the_limit():
    """16 ranks in two nodes: 8 cards of 25 GB/s, 200 GB/s; one rank a node: one card, 25 GB/s."""
    whole, strided = Group(16, 8, 2), Group(2, 1, 2)
    assert exchange_s("all_gather", 16 * GB, whole, NODE) == pytest.approx(3e-5 + 15 / 200)
    assert exchange_s("all_gather", 2 * GB, strided, NODE) == pytest.approx(3e-5 + 1 / 25)
    assert tier_of(strided, NODE) == "network"


def test_the_fast_link_is_the_limit_where_cards_are_faster():
    fast = NODE._replace(outer=LinkRate(3e-5, 100e9))
    assert exchange_s("all_gather", 16 * GB, Group(16, 8, 2), fast) == pytest.approx(
        3e-5 + 15 / 300
    )


def test_an_all_to_all_leaves_a_node_by_each_gpus_own_card():
    """16 ranks in two nodes: 8/16 of 16 GB leave at 25 GB/s, 7/16 stay at 300 GB/s beside it."""
    seconds = exchange_s("all_to_all", 16 * GB, Group(16, 8, 2), NODE)
    assert seconds == pytest.approx(3e-5 + 8 / 25)


def test_small_sums_over_many_nodes_run_as_trees():
    """4 bytes over 64 nodes: hops of a tree, 2 x 6, not the 2 x 63 of a ring."""
    seconds = exchange_s("all_reduce", 4, Group(64, 1, 64), NODE)
    assert seconds == pytest.approx(3e-5 + 12 * topology.TREE_HOP_S, rel=0.01)
    ring = exchange_s("all_gather", 4, Group(64, 1, 64), NODE)
    assert ring == pytest.approx(3e-5 + 62 * topology.NETWORK_HOP_S, rel=0.01)


def test_two_ranks_of_a_mesh_have_the_links_between_them():
    """A V100 has six links, two of them to one neighbour: a pair reaches a third of a ring of four."""
    mesh = NODE._replace(mesh=True)
    pair = exchange_s("all_gather", 2 * GB, Group(2, 2, 1), mesh) - 1e-5
    four = exchange_s("all_gather", 4 * GB, Group(4, 4, 1), mesh) - 1e-5
    assert (pair, four) == pytest.approx((1 / 100, 3 / 300))


def test_one_rank_takes_no_time():
    assert {exchange_s(kind, GB, Group(1, 1, 1), NODE) for kind in KINDS} == {0.0}


def test_wires_of_a_cluster_are_its_own_figures():
    """p4d: four cards of 100 Gb/s for eight GPUs, a quarter of a DGX A100's eight of 200 Gb/s."""
    aws, dgx = wires(cluster="aws-p4d-24xlarge"), wires(cluster="dgx-a100-80gb")
    assert (aws.domain, aws.tier) == (8, "link")
    assert aws.outer.bus_bytes_per_s == pytest.approx(dgx.outer.bus_bytes_per_s / 4)
    assert wires(cluster="gb200-nvl72").domain == 72


def test_without_a_cluster_nodes_of_eight_are_assumed_and_said():
    found = wires("h100-80gb", gpus=16)
    assert found.domain == 8 and "nodes of 8" in found.assumptions[0]
    assert wires("h100-80gb", gpus=16, gpus_per_node=4).domain == 4


@pytest.mark.parametrize(
    ("gpu", "cluster", "tier"),
    [
        ("l40s", None, "pcie"),
        ("rtx-4090", None, "pcie"),
        (None, "4x-rtx-4090-pcie", "pcie"),
        ("h100-pcie-80gb", None, "pcie"),  # bridges join pairs only
        ("h100-80gb", None, "link"),
        ("mi300x", None, "link"),
    ],
)
def test_a_gpu_without_a_fast_link_uses_pcie(gpu, cluster, tier):
    assert wires(gpu, cluster, gpus=4).tier == tier


def test_every_gpu_and_cluster_has_wires():
    """No profile lacks a figure the model needs: PCIe and network are assumed where none is known."""
    for gpu in ("gaudi3", "tpu-v5p", "m4-max", "gb300-288gb", "t4", "v100-32gb"):
        found = wires(gpu, gpus=16)
        assert found.inner.bus_bytes_per_s > 0 and found.outer.bus_bytes_per_s > 0


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 10**10),
    st.sampled_from([Group(2, 2, 1), Group(8, 8, 1), Group(16, 8, 2), Group(64, 1, 64)]),
    st.floats(1, 50),
    st.booleans(),
)
def test_more_bandwidth_is_never_slower(kind, size, group, factor, inside):
    faster = (
        NODE._replace(inner=LinkRate(1e-5, 300e9 * factor))
        if inside
        else NODE._replace(outer=LinkRate(3e-5, 25e9 * factor))
    )
    assert exchange_s(kind, size, group, faster) <= exchange_s(kind, size, group, NODE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [Group(8, 8, 1), Group(16, 8, 2), Group(32, 2, 16)])
def test_no_exchange_beats_the_wires(kind, group):
    """Bytes that must leave a GPU, over the fastest wire a ring of this group has."""
    passes = {"all_reduce": 2, "send": group.ranks / (group.ranks - 1)}.get(kind, 1)
    wire = passes * (group.ranks - 1) / group.ranks * GB
    assert exchange_s(kind, GB, group, NODE) >= wire / 300e9


def test_arrays_equal_numbers():
    """Sizes and the network's rate as arrays: the scalar figures, element by element."""
    numpy = pytest.importorskip("numpy")
    sizes, shares = numpy.array([10**6, 10**9]), numpy.array([25e9, 400e9])
    many = NODE._replace(outer=LinkRate(3e-5, shares))
    for kind in KINDS:
        found = exchange_s(kind, sizes, Group(16, 8, 2), many)
        for index, (size, share) in enumerate(zip(sizes, shares, strict=True)):
            one = NODE._replace(outer=LinkRate(3e-5, float(share)))
            assert found[index] == exchange_s(kind, int(size), Group(16, 8, 2), one)


def test_a_stated_network_replaces_the_clusters():
    """A cluster of other cards: the same GPU, a tenth of the rate."""
    usual = load_cluster("dgx-h100")
    slow = replace(usual, nic_bytes_per_s=usual.nic_bytes_per_s / 10)
    device = device_of(None, cluster=usual)
    assert isinstance(device, Device) and device.gpu is not None
    rates, layout = rates_of(device.gpu), with_degrees(ParallelPlan(gpus=16))
    found = wires_of(device._replace(cluster=slow), layout, rates)
    assert found.outer.bus_bytes_per_s == pytest.approx(
        wires_of(device, layout, rates).outer.bus_bytes_per_s / 10
    )

"""Cluster profiles: every figure has a source, rates agree with the devices', names resolve."""

from __future__ import annotations

import pytest

from memcalc.engine.device_side import device_of
from memcalc.errors import ConfigError
from memcalc.inputs import clusters, profiles
from memcalc.inputs.clusters import load_cluster
from memcalc.inputs.hardware import load_gpu
from memcalc.units import GIB, TIB

SLUGS = profiles.profile_names("clusters")
TEXTS = {"name", "aliases", "gpu", "link", "topology", "host_link", "network", "notes"}


def test_the_clusters_people_train_on_are_there():
    assert set(SLUGS) >= {
        "dgx-a100-40gb", "dgx-a100-80gb", "dgx-h100", "hgx-h100", "dgx-h200", "hgx-h200", "hgx-b200",
        "gb200-nvl72", "4x-rtx-4090-pcie", "aws-p3-16xlarge", "aws-p4d-24xlarge", "aws-p5-48xlarge",
        "jean-zay-a100", "jean-zay-v100", "dgx-1-v100",
    }  # fmt: skip


@pytest.mark.parametrize("slug", SLUGS)
def test_every_figure_has_a_source_and_a_verdict(slug):
    raw = profiles.load_profile("clusters", slug)
    assert set(raw) <= TEXTS | set(clusters.FIGURES)
    for key in set(raw) - TEXTS:
        entry = raw[key]
        assert entry["value"] > 0 and entry["source"].strip(), key
        assert isinstance(entry["verified"], bool), key
        remembered = "from memory" in entry["source"] or "assumed" in entry["source"]
        assert not (remembered and entry["verified"]), key


@pytest.mark.parametrize("slug", SLUGS)
def test_every_profile_loads_with_plausible_figures(slug):
    cluster = load_cluster(slug)
    assert cluster.slug == slug and cluster.name and cluster.link != "unknown"
    assert cluster.gpus_per_node in (4, 8) and cluster.domain_gpus % cluster.gpus_per_node == 0
    assert cluster.topology in clusters.TOPOLOGIES
    assert 1e9 <= cluster.nic_bytes_per_s <= 1e11
    assert cluster.gpu_network_bytes_per_s < cluster.link_bytes_per_s < 1e12
    assert 10e9 < cluster.host_bytes_per_s <= 225e9
    if cluster.host_memory_bytes is not None:
        assert 100 * GIB < cluster.host_memory_bytes <= 4 * TIB
    if cluster.nvme_bytes is not None:
        assert 1e12 <= cluster.nvme_bytes < 1e14
    if cluster.nvme_bytes_per_s is not None:
        assert 1e9 < cluster.nvme_bytes_per_s < 1e11
    assert cluster.profile_hash == profiles.profile_hash(profiles.find_profile("clusters", slug))
    hash(cluster)


@pytest.mark.parametrize("slug", SLUGS)
def test_the_link_is_the_one_of_its_device(slug):
    """Both profiles state the rate of a GPU's link, from different sources."""
    cluster = load_cluster(slug)
    gpu = load_gpu(cluster.gpu)[0]
    assert gpu.slug == cluster.gpu
    expected = gpu.pcie_bytes_per_s if cluster.topology == "host" else None
    expected = expected or gpu.link_unidirectional_bytes_per_s
    assert cluster.link_bytes_per_s == pytest.approx(expected, rel=1e-3)
    if gpu.pcie_bytes_per_s and cluster.host_link.startswith("PCIe"):
        assert cluster.host_bytes_per_s == pytest.approx(gpu.pcie_bytes_per_s, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("dgx-a100", "dgx-a100-80gb"), ("DGX H100", "dgx-h100"), ("NVL72", "gb200-nvl72"),
        ("p4d.24xlarge", "aws-p4d-24xlarge"), ("slow-ethernet", "aws-p3-16xlarge"),
        ("4x4090", "4x-rtx-4090-pcie"), ("jean_zay", "jean-zay-a100"), ("dgx-1", "dgx-1-v100"),
    ],
)  # fmt: skip
def test_usual_spellings_resolve(name, slug):
    assert load_cluster(name).slug == slug


def test_no_two_profiles_share_a_name_or_alias():
    seen: dict[str, str] = {}
    for slug in SLUGS:
        raw = profiles.load_profile("clusters", slug)
        for name in {profiles.normal_name(n) for n in (slug, *raw["aliases"])}:
            assert seen.setdefault(name, slug) == slug, name


@pytest.mark.parametrize(("name", "near"), [("dgx-h10", "dgx-h100"), ("nvl7", "nvl72")])
def test_a_wrong_name_says_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"nearest: .*{near}") as error:
        load_cluster(name)
    assert "\n" not in str(error.value)


def test_figures_are_in_base_units():
    """Data sheets: 8 cards of 400 Gb/s, NVLink 4 900 GB/s in both directions; 52 nodes at Jean Zay."""
    dgx = load_cluster("dgx-h100")
    assert dgx.link_bytes_per_s == 450e9 and dgx.nic_bytes_per_s == 50e9
    assert dgx.node_network_bytes_per_s == 400e9 and dgx.gpu_network_bytes_per_s == 50e9
    assert dgx.host_memory_bytes == 2 * TIB and dgx.gpus is None
    assert load_cluster("jean-zay-a100").gpus == 416
    rack = load_cluster("gb200-nvl72")
    assert (rack.gpus_per_node, rack.domain_gpus, rack.gpus) == (4, 72, 72)
    slow = load_cluster("slow-ethernet")
    assert slow.node_network_bytes_per_s == 25e9 / 8


CUSTOM = """
gpu = "a100 80gb"
gpus_per_node = 8
link_bytes_per_s = 3e11
nics_per_node = 2
nic_bytes_per_s = { value = 3.125e9, source = "own sheet", verified = true }
"""


def test_a_custom_file_loads_with_bare_numbers(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(CUSTOM)
    cluster = load_cluster(str(path))
    assert (cluster.name, cluster.gpu, cluster.domain_gpus) == ("mine", "a100-80gb", 8)
    assert cluster.gpu_network_bytes_per_s == 6.25e9 / 8
    assert cluster.unverified == ("gpus_per_node", "nics_per_node", "link_bytes_per_s")
    assert cluster.host_memory_bytes is None


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('gpu = "a100 80gb"', "", "gpu: got none"),
        ('gpu = "a100 80gb"', 'gpu = "a101"', "nearest"),
        ("gpus_per_node = 8", "", "gpus_per_node: got none"),
        ("gpus_per_node = 8", "gpus_per_node = 7.5", "whole number"),
        ("gpus_per_node = 8", "gpus_per_node = 8\ndomain_gpus = 12", "nearest valid: 16"),
        ("link_bytes_per_s = 3e11", "link_bytes_per_s = -1", "positive number"),
        ("nics_per_node = 2", 'nics_per_node = 2\ntopology = "torus"', "topology"),
        ("nics_per_node = 2", "nics_per_node = 2\nlink = 4", "rule: a string"),
        ("nics_per_node = 2", "nic_per_node = 2", "nearest: nics_per_node"),
        ("link_bytes_per_s = 3e11", "link_bytes_per_s = 300", "nearest valid: 300e9"),
        ('gpu = "a100 80gb"', 'gpu = "nosuch.toml"', "cannot read"),
    ],
)
def test_a_broken_custom_file_is_a_one_line_error(tmp_path, old, new, match):
    path = tmp_path / "mine.toml"
    path.write_text(CUSTOM.replace(old, new))
    with pytest.raises(ConfigError, match=match) as error:
        load_cluster(str(path))
    assert "\n" not in str(error.value)


def test_a_custom_cluster_may_be_of_a_custom_gpu_in_a_file_beside_it(tmp_path, monkeypatch):
    (tmp_path / "card.toml").write_text(
        "marketed_gb = 48\nmemory_bandwidth_bytes_per_s = 9e11\nbf16_tensor_flops_per_s = 1e14\n"
    )
    path = tmp_path / "mine.toml"
    path.write_text(CUSTOM.replace("a100 80gb", "card.toml"))
    monkeypatch.chdir("/")  # found beside the cluster's file, wherever one stands
    cluster = load_cluster(str(path))
    assert cluster.gpu == "card" and cluster.gpu_file == str(tmp_path / "card.toml")
    device = device_of(None, cluster=cluster)
    assert device.gpu.marketed_gb == 48 and device.cluster is cluster
    with pytest.raises(ConfigError, match="valid: card"):
        device_of("h100", cluster=cluster)


def test_a_cluster_without_a_network_has_no_rate(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(CUSTOM.replace("nics_per_node = 2", ""))
    cluster = load_cluster(str(path))
    assert cluster.node_network_bytes_per_s is None and cluster.gpu_network_bytes_per_s is None

"""Layouts on the command line: degrees, clusters, what is shown of them, and what is refused."""

from __future__ import annotations

import pytest

MODEL = ("estimate", "llama-3.1-8b")


def test_gpus_fill_in_dp_and_the_page_says_the_layout(memcalc) -> None:  # type: ignore[no-untyped-def]
    said = memcalc(*MODEL, "--gpus", 16, "--tp", 2, "--sp", "--fsdp")
    assert said.status == 0
    assert "16 GPUs: tp 2 with sp, dp 8, fsdp" in said.out


def test_one_gpu_has_no_line_of_layout(memcalc) -> None:  # type: ignore[no-untyped-def]
    assert "GPUs:" not in memcalc(*MODEL).out


def test_communicators_are_driver_memory_beside_the_context(memcalc) -> None:  # type: ignore[no-untyped-def]
    memory = memcalc(*MODEL, "--gpus", 8, "--fsdp", "--json").json["memory"]
    assert memory["communication_bytes"] > 0
    assert memory["device_used_bytes"] == (
        memory["peak_reserved_bytes"] + memory["context_bytes"] + memory["communication_bytes"]
    )
    alone = memcalc(*MODEL, "--json").json["memory"]
    assert alone["communication_bytes"] == 0


def test_a_cluster_names_its_gpu_and_its_nodes(memcalc) -> None:  # type: ignore[no-untyped-def]
    found = memcalc(*MODEL, "--gpus", 16, "--fsdp", "--cluster", "DGX A100", "--json").json
    assert found["setup"]["cluster"] == "dgx-a100-80gb"
    assert found["setup"]["gpu"] == "a100-80gb"
    assert found["setup"]["profile_hashes"]["cluster"]
    assert not any("no cluster named" in line for line in found["assumptions"])
    plain = memcalc(*MODEL, "--gpus", 16, "--fsdp", "--gpu", "a100-80gb", "--json").json
    assert any("no cluster named" in line for line in plain["assumptions"])


def test_a_host_without_peer_access_holds_the_buffers_itself(memcalc) -> None:  # type: ignore[no-untyped-def]
    def between(*words: object) -> int:
        found = memcalc("estimate", "gpt2", "--seq", 64, "--gpus", 4, *words, "--json").json
        return int(found["memory"]["communication_bytes"])

    assert between("--cluster", "4x-rtx-4090-pcie") < between("--cluster", "dgx-h100")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tp", 6), "tp=6 does not divide 32 heads; valid: 1, 2, 4, 8, 16, 32"),
        (("--gpus", 12, "--tp", 8), "tp x pp x cp divides 12 GPUs; valid: 1, 2, 3, 4, 6, 12"),
        (("--gpus", 8, "--dp", 3), "valid: 8"),
        (("--gpus", 8, "--tp", 2), "valid: --fsdp, or --tp 8"),
        (("--ep", 2, "--gpus", 2), "has no experts; valid: 1"),
        (("--gpu", "a100-80gb", "--cluster", "dgx-h100"), "valid: h100-80gb"),
        (("--cluster", "dgx-h10"), "nearest: dgx-h100"),
        (("--gpus", 8, "--zero", 5), "--zero"),
    ],
)
def test_what_does_not_go_together_is_one_line(memcalc, words, said) -> None:  # type: ignore[no-untyped-def]
    refused = memcalc(*MODEL, *words)
    assert refused.status == 2 and said in refused.error


def test_diff_compares_layouts(memcalc) -> None:  # type: ignore[no-untyped-def]
    done = memcalc(
        "diff", "llama-3.1-8b --gpus 8 --fsdp", "llama-3.1-8b --gpus 16 --fsdp", "--json"
    )
    assert done.status == 0
    assert "gpus" in done.out and "dp" in done.out


def test_offload_that_the_host_cannot_hold_does_not_fit(memcalc) -> None:  # type: ignore[no-untyped-def]
    words = ("estimate", "llama-3.1-70b", "--stack", "deepspeed", "--gpus", 8, "--zero", 3,
             "--offload", "all", "--recompute", "full")  # fmt: skip
    large = memcalc(*words, "--cluster", "dgx-h100")
    assert large.status == 0
    small = memcalc(*words, "--cluster", "jean-zay-a100")
    assert small.status == 3 and "host memory: a node needs" in small.err
    assert "the host lacks memory" in small.out

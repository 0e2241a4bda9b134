"""The sdist and the wheel: built once, what is in them, and that a wheel of the sdist runs elsewhere."""

from __future__ import annotations

import email
import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from memcalc.cli.options import COMMANDS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="no build backend: pip install hatchling"
)


class Built(NamedTuple):
    """The two archives and the folder the wheel is unpacked in."""

    sdist: Path
    wheel: Path
    installed: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist of the working tree, unpacked, and the wheel built of that, unpacked."""
    folder = tmp_path_factory.mktemp("dist")
    _build("sdist", ROOT, folder)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    [source] = (folder / "source").iterdir()
    _build("wheel", source, folder)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as found:
        found.extractall(folder / "installed")
    return Built(sdist, wheel, folder / "installed")


def _build(kind: str, source: Path, folder: Path) -> None:
    code = f"from hatchling.build import build_{kind} as build; build({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def _run(built: Built, where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(built.installed)}
    return subprocess.run([sys.executable, "-m", "memcalc", *words], cwd=where, text=True,
                          capture_output=True, timeout=120, check=False, env=environment)  # fmt: skip


def test_a_wheel_of_the_sdist_estimates_in_another_directory(built: Built, tmp_path: Path) -> None:
    done = _run(built, tmp_path, "estimate", "llama-3.2-1b", "--gpu", "h100-80gb", "-q")
    assert done.returncode == 0 and "verdict fits" in done.stdout, done.stderr
    words = ["estimate", "llama-3.2-1b", "--gpu", "h100-80gb", "-q"]
    here = subprocess.run([sys.executable, "-m", "memcalc", *words], cwd=ROOT, text=True,
                          capture_output=True, check=True)  # fmt: skip
    assert done.stdout == here.stdout
    done = _run(built, tmp_path, "doctor", "--json")
    assert str(built.installed) in done.stdout  # its own profiles, not the checkout's


def test_every_profile_and_published_row_is_in_the_wheel(built: Built) -> None:
    inside = {
        path.relative_to(built.installed / "memcalc" / "_profiles")
        for path in (built.installed / "memcalc" / "_profiles").rglob("*.toml")
    }
    assert inside == {p.relative_to(ROOT / "profiles") for p in (ROOT / "profiles").rglob("*.toml")}
    assert (built.installed / "memcalc" / "_published" / "runs.csv").is_file()
    assert (built.installed / "memcalc" / "py.typed").is_file()
    names = {
        path.parts[0]
        for path in (p.relative_to(built.installed) for p in built.installed.rglob("*"))
    }
    assert {name for name in names if not name.startswith("memcalc")} == set()


def test_the_wheel_has_a_man_page_for_each_command(built: Built) -> None:
    pages = {path.name for path in built.installed.rglob("share/man/man1/*.1")}
    assert pages == {"memcalc.1", *(f"memcalc-{command}.1" for command in COMMANDS)}


def test_the_metadata_says_what_it_needs_and_that_torch_is_an_extra(built: Built) -> None:
    [path] = built.installed.rglob("*.dist-info/METADATA")
    found = email.message_from_string(path.read_text())
    assert found["Name"] == "memcalc" and found["Requires-Python"] == ">=3.11"
    assert found["License-Expression"] == "Apache-2.0" and found["License-File"] == "LICENSE"
    needed = found.get_all("Requires-Dist") or []
    plain = {line.split(">")[0].split(";")[0] for line in needed if "extra ==" not in line}
    assert plain == {"typer", "rich", "numpy", "pandas", "matplotlib"}
    assert {"harness", "interop", "test"} <= set(found.get_all("Provides-Extra") or [])
    [script] = built.installed.rglob("*.dist-info/entry_points.txt")
    assert "memcalc = memcalc.__main__:main" in script.read_text()


def test_the_sdist_has_what_its_tests_read(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    kept = [
        Path(line)
        for folder in ("memcalc", "tests", "docs", "benchmarks", "profiles")
        for line in _kept(folder)
    ]
    top = map(Path, ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "hatch_build.py"))
    assert {*kept, *top, Path("pyproject.toml")} <= names


def _kept(folder: str) -> list[str]:
    """Files of a folder that belong to the project: what git would keep, all but caches without git."""
    return [
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", ".pytest_cache"} & set(path.parts)
    ]

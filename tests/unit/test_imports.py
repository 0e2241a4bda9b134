"""The package's shape: which module may import which, and how long files and functions are."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "memcalc"
FILES = sorted(PACKAGE.rglob("*.py"))
#: Layers from the command line down; a module imports its own layer and those to its right.
LAYERS = ("cli", "output", "planning", "harness", "accuracy", "engine", "inputs", "base")
#: Layers side by side: neither imports the other.
APART = {
    ("output", "harness"), ("output", "accuracy"), ("harness", "accuracy"), ("output", "planning"),
    ("planning", "harness"), ("planning", "accuracy"),
}  # fmt: skip
#: Files of the harness that work without torch: records are read and compared anywhere.
WITHOUT_TORCH = {
    "records.py", "record_head.py", "memory_summary.py", "kernel_trace.py", "comparison.py",
}  # fmt: skip
HEAVY = {"torch", "pandas", "numpy", "matplotlib", "transformers", "safetensors"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def _ids(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def _layer(path: Path) -> str | None:
    """The layer of a file; None for the package's front doors, which may import anything."""
    parts = path.relative_to(PACKAGE).parts
    if parts in (("__init__.py",), ("__main__.py",)):
        return None
    return parts[0] if len(parts) > 1 else "base"


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _at_module_level(tree: ast.Module) -> Iterator[str]:
    """Imports that run when the module is imported."""
    for node in tree.body:
        if not _is_for_types(node) and not isinstance(node, Function | ast.ClassDef):
            yield from _imports(node)


def _that_run(tree: ast.Module) -> Iterator[str]:
    """Imports that run at some time, those inside functions too."""
    hidden = {
        id(inner) for node in ast.walk(tree) if _is_for_types(node) for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) not in hidden and isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(node)


def _functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def of_every_file(check: Callable[[Path], None]) -> Callable[[], None]:
    """One test that tells every file with a fault: a test a file would be thousands."""

    def test() -> None:
        faults = []
        for path in FILES:
            try:
                check(path)
            except AssertionError as error:
                faults.append(f"{_ids(path)}: {str(error).splitlines()[0]}")
        assert not faults, "\n".join(faults)

    test.__doc__ = check.__doc__
    return test


@of_every_file
def test_imports_run_one_way(path):
    layer = _layer(path)
    if layer is None:
        return
    assert layer in LAYERS, f"{layer} is no layer"
    allowed = {*LAYERS[LAYERS.index(layer) :]}
    for name in _imports(_parsed(path)):
        if not name.startswith("memcalc."):
            continue
        package = name.split(".")[1]
        if (PACKAGE / package).is_dir():
            assert package in allowed and (layer, package) not in APART, f"{layer} imports {name}"


def test_no_files_import_each_other_in_a_circle():
    """Imports inside functions count; those for types alone do not, nor what the package hands on."""
    names = {_ids(path).removesuffix(".py").replace("/", "."): path for path in FILES}
    needs = {
        name: {one for one in _that_run(_parsed(path)) if one in names and one != name}
        for name, path in names.items()
        if _layer(path) is not None
    }
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError with the files


@of_every_file
def test_heavy_packages_are_imported_inside_functions_only(path):
    loaded = {name.partition(".")[0] for name in _at_module_level(_parsed(path))}
    assert not loaded & (HEAVY - {"torch"} if _measures(path) else HEAVY)


def _measures(path: Path) -> bool:
    """Whether a file may import torch: harness modules, except those that must work without."""
    return _layer(path) == "harness" and path.name not in WITHOUT_TORCH


@of_every_file
def test_only_measuring_code_ever_imports_torch(path):
    names = {name.partition(".")[0] for name in _imports(_parsed(path))}
    assert "transformers" not in names
    assert "torch" not in names or _measures(path)


@of_every_file
def test_harness_modules_are_imported_inside_functions_only(path):
    if _layer(path) in ("harness", None):
        return
    loaded = [n for n in _at_module_level(_parsed(path)) if n.startswith("memcalc.harness")]
    assert not loaded


@of_every_file
def test_files_are_short(path):
    lines = len(path.read_text("utf-8").splitlines())
    if path.name in ("__init__.py", "__main__.py"):
        assert lines <= 300
    else:
        assert 25 <= lines <= 300


@of_every_file
def test_functions_are_short_and_take_few_parameters(path):
    for function in _functions(_parsed(path)):
        lines = (function.end_lineno or 0) - function.lineno + 1
        args = function.args
        names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
        count = len([n for n in names if n not in ("self", "cls")])
        where = f"{function.name}, line {function.lineno}"
        assert lines <= 50, f"{where}: {lines} lines"
        assert count <= 6 or _layer(path) == "cli", f"{where}: {count} parameters"


@of_every_file
def test_modules_and_public_functions_have_docstrings(path):
    tree = _parsed(path)
    text = path.read_text("utf-8")
    if not text.strip():
        return
    assert ast.get_docstring(tree), "module"
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name

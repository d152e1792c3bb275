"""Who imports whom: no cycles, rooms that say what belongs in them, and no test imported by anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = {"kernels": "gemm_ladder", "ref": "gemm_ladder.ref", "figures": "gemm_ladder.figures"}
ROOMS = (
    "build",
    "casts",
    "checks",
    "lab",
    "layers",
    "measure",
    "production",
    "sass",
    "testing",
    "timeline",
    "training",
    "utils",
)


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (REPOSITORY / folder).rglob("*.py"):
            parts = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imported(tree: ast.AST, module: str, package: str) -> Iterator[str]:
    """The names that a module's import statements bring in, those inside functions included; not those for
    type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node, module, package)


def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found = set()
        for target in imported(ast.parse(path.read_text(encoding="utf-8")), name, package):
            # `from package import x`: x is a module, or a name that its package has.
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target:
                found.add(target)
        edges[name] = found - {name}
    return edges


def a_cycle(edges: dict[str, set[str]]) -> list[str]:
    """A cycle, as the modules that it goes through, or nothing."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in sorted(edges[name]):
                if cycle := visit(target, [*path, name]):
                    return cycle
            done.add(name)
        return []

    return next((cycle for name in sorted(edges) if (cycle := visit(name, []))), [])


def test_no_cycles() -> None:
    """Not even through an import inside a function."""
    assert a_cycle(graph()) == []


def test_a_cycle_is_found() -> None:
    assert a_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert a_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    edges = graph()
    assert "gemm_ladder.build.cache" in edges["gemm_ladder.build.toolchain"]
    assert "gemm_ladder.production.launching" in edges["gemm_ladder.ops"], "an import inside a function"
    assert "gemm_ladder.checks" not in edges["gemm_ladder.arguments"], "for type checkers alone"
    assert "gemm_ladder.figures.measured" in edges["gemm_ladder.figures.tables"], "a relative import"


def test_rooms() -> None:
    """kernels/ has few files of its own; each room says what belongs in it and what does not."""
    assert len(list((REPOSITORY / "kernels").glob("*.py"))) <= 15
    packages = {path.parent.name for path in (REPOSITORY / "kernels").glob("*/__init__.py")}
    assert packages == {*ROOMS}
    for room in ROOMS:
        text = ast.get_docstring(ast.parse((REPOSITORY / "kernels" / room / "__init__.py").read_text()))
        words = " ".join((text or "").split())
        assert "What belongs here:" in words and "What does not:" in words, room


def test_nothing_imports_tests() -> None:
    """Tests share helpers, which are no tests; nothing outside tests/ knows of either."""
    helpers = {path.stem for path in (REPOSITORY / "tests").glob("*.py")}
    tests = {name for name in helpers if name.startswith("test_")}
    for folder in ("kernels", "ref", "figures", "lessons", "tests"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            names = {name.partition(".")[0] for name in imported(ast.parse(path.read_text()), "", "")}
            assert not names & (tests if folder == "tests" else helpers), path


def test_figures_need_nothing_of_the_package() -> None:
    """figures/draw.py runs where gemm_ladder is not installed."""
    for name, targets in graph().items():
        if name.startswith("gemm_ladder.figures"):
            assert all(target.startswith("gemm_ladder.figures") for target in targets), name

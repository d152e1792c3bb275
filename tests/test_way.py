"""kernels/README.md, the way through the code: what it names exists, and its tasks need few files."""

from __future__ import annotations

import ast
import re

from repository import REPOSITORY

KERNELS = REPOSITORY / "kernels"
TEXT = (KERNELS / "README.md").read_text()
TASKS = (
    *("add a rung", "add a case that every rung, and every judged kernel, has to compute"),
    *("have the judge name another mistake", "change a tile shape"),
    *("change a training kernel, its tiles or their choice", "change a cast, or add what comes before one"),
    "change a layer, its gradients, or what it reads from checkpoints",
    "change what `convert` replaces, or what its report says",
    "change how tokens are laid out for experts, or what is computed for them",
    "change the gradients of experts, or what is read of single ones",
    "change what GPUs that share a layer send each other, or what each has",
    "change what such GPUs save together",
    "change which kernel a shape gets",
    "add an instruction",
    *("add a peer", "change what a call accepts", "change how a kernel is built or cached"),
    "change a decoder layer that `model` measures, or how it computes",
    "change what is built before a call needs it",
    *("add a measured shape", "fix a command"),
)


def section(title: str) -> str:
    return re.split(r"^## ", TEXT.partition(f"## {title}\n")[2], maxsplit=1, flags=re.M)[0]


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) > 50
    for link in links:
        assert (KERNELS / link).exists(), link


def test_every_task_needs_three_files_at_most() -> None:
    rows = re.findall(r"^\| (?!task|-)(.+?) \| (.+) \|$", section("Where to change what"), re.M)
    assert [task for task, _ in rows] == [*TASKS]
    for task, files in rows:
        assert 1 <= len(re.findall(r"\]\(([^)]+)\)", files)) <= 3, task


def test_every_room_is_on_the_map() -> None:
    folders = {path.name for path in KERNELS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^\| \[(\w+)/\]", section("The map"), re.M)) == folders
    files = {path.name for path in KERNELS.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(re.findall(r"\[(\w+\.py)\]", section("The map"))) >= files


def test_a_walk_finds_every_function() -> None:
    """After a link to a file come names in backquotes: the file has the first of them."""
    hops = re.findall(r"\[[^\]]+\]\(([^)]+\.(?:py|cuh|cpp|hpp))\)\s+`([\w.]+)", section("Three walks"))
    assert len(hops) > 15
    for file, name in hops:
        text = (KERNELS / file).read_text()
        for part in name.split("."):
            if file.endswith(".py"):
                named = {
                    *(node.name for node in ast.walk(ast.parse(text)) if hasattr(node, "name")),
                    *re.findall(r"^(\w+)\b.* = ", text, re.M),
                }
                assert part in named, f"{file}: {name}"
            else:
                assert re.search(rf"\b{part}\(", text), f"{file}: {name}"

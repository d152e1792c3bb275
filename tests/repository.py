"""The repository as tests see it: its files, and the wheel that is made of them."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@functools.cache
def files() -> tuple[Path, ...]:
    """What is tracked, or would be with the next `git add .`; relative paths."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    names = {Path(name) for name in listing.stdout.decode().split("\0") if name}
    return tuple(sorted(name for name in names if (REPOSITORY / name).is_file()))


def build_wheel(folder: Path) -> Path:
    """Build the package from a copy of these files, so that no build output lands in the repository."""
    copy = folder / "repository"
    for name in files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, copy / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    built = subprocess.run([*pip, "-w", folder, copy], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel

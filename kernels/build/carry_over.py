"""Carry recorded measurements over from the earlier rule of the sources' digest to the present one:

python -m gemm_ladder.build.carry_over COMMIT      in a checkout

The earlier rule hashed the bytes of the kernels' sources, comments included; `digest` hashes their tokens. A
file of figures/data names the digest of the sources that it was measured with. COMMIT is a commit with those
sources. If they have the same tokens as the present ones, then what was measured are the present kernels, and
the earlier digest is replaced by the present one in every file of figures/data that has it.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gemm_ladder.build import digest
from gemm_ladder.errors import GemmLadderError

_FOLDER = "kernels"  # in the repository
# As digest.SOURCES, and where ffma.py was before kernels/ had folders for Python.
_SOURCES = (*digest.SOURCES, "ffma.py")


def carry_over(repository: Path, commit: str) -> list[Path]:
    """Replace the earlier rule's digest of `commit`'s sources in figures/data; returns the changed files.

    Raises GemmLadderError where git does not know the commit, and where a source has other tokens now.
    """
    files = _files(repository, commit)
    then = {
        PurePosixPath(path).name: content.decode()
        for path, content in files.items()
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in _SOURCES)
    }
    paths = [path for pattern in digest.SOURCES for path in (repository / _FOLDER).glob(pattern)]
    now = {path.name: path.read_text(encoding="utf-8") for path in paths}
    changed = sorted(
        name
        for name in then.keys() | now.keys()
        if name not in then
        or name not in now
        or digest.tokens(name, then[name]) != digest.tokens(name, now[name])
    )
    if changed:
        raise GemmLadderError(
            f"The recorded files stay as they are: since {commit}, more than comments and white space has "
            f"changed in {', '.join(changed)}."
        )
    recorded = re.compile(rf'("sources":\s*"){earlier_digest(files)}(")')
    replaced = []
    for path in sorted((repository / "figures" / "data").glob("*.json")):
        text = path.read_text(encoding="utf-8")
        text, count = recorded.subn(rf"\g<1>{digest.digest_of(now)}\g<2>", text)
        if count:
            path.write_text(text, encoding="utf-8")
            replaced.append(path)
    return replaced


def earlier_digest(files: dict[str, bytes]) -> str:
    """The earlier rule: SHA-256 (hex) of names and bytes of all *.cu, all *.cuh and ffma.py below kernels/.

    files: {path below kernels/: content}, which may have other files as well.
    """
    found = hashlib.sha256()
    for path in sorted(files):
        if path.endswith((".cu", ".cuh")) or PurePosixPath(path).name == "ffma.py":
            found.update(f"{path}\0{len(files[path])}\0".encode() + files[path])
    return found.hexdigest()


def _files(repository: Path, commit: str) -> dict[str, bytes]:
    """{path below kernels/: content} of the sources at a commit, by either rule."""
    listed = _git(repository, "ls-tree", "-r", "-z", "--name-only", f"{commit}:{_FOLDER}")
    paths = [path for path in listed.decode().split("\0") if path.endswith((".cu", ".cuh", "ffma.py"))]
    return {path: _git(repository, "show", f"{commit}:{_FOLDER}/{path}") for path in paths}


def _git(repository: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True)
    if done.returncode != 0:
        raise GemmLadderError(f"git {' '.join(arguments)} fails: {done.stderr.decode().strip()}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Run carry_over() on this checkout. Exit status 0, or 1 where it refuses."""
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder.build.carry_over",
        description="Replace the earlier rule's digest of a commit's sources in figures/data by the present "
        "digest, if nothing but comments and white space has changed since.",
    )
    parser.add_argument("commit", help="with the sources that were measured")
    arguments = parser.parse_args(argv)
    repository = digest.KERNELS.parent
    try:
        replaced = carry_over(repository, arguments.commit)
    except GemmLadderError as error:
        print(error, file=sys.stderr)
        return 1
    for path in replaced:
        print(f"{path.relative_to(repository)} has the present digest")
    print(f"{len(replaced)} files carried over")
    return 0


if __name__ == "__main__":
    sys.exit(main())

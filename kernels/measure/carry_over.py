"""Carry recorded measurements over to the present sources of the kernels:

    python -m gemm_ladder.measure.carry_over COMMIT [--machine-code]      in a checkout

A file of figures/data names the digest of the sources that it was measured with. COMMIT is a commit with
those sources. If they have the same tokens as the present ones, or, with --machine-code, if nvcc makes the
same instructions of them, then what was measured are the present kernels, and the earlier digest is replaced
by the present one in every file of figures/data that has it. Where the rungs or the production kernels
differ, no file is changed. Some files also time casts, or kernels of layers and training. Such a file keeps
its digest if tokens of theirs differ or, with --machine-code, if the instructions of what it times do
(`same_code.of_file`).

Only what runs on the GPU is compared. How it is launched, with how many thread blocks and which of a
library's kernels, is decided in C++ on the host, of which --machine-code sees nothing: it names the headers
that have other tokens, to be read. Nor does it see which kernels Python chooses for a call, or what else
Python does in what is timed: it takes the kernels that are chosen today, and names the Python files that have
changed, to be read, too.

A digest may be of either rule: the present one, which hashes tokens (`gemm_ladder.build.digest`), or the one
before it, which hashed the bytes of the files, comments included.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gemm_ladder.build import digest
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.measure import same_code

_FOLDER = "kernels"  # in the repository
# As digest.SOURCES, and where ffma.py was before kernels/ had folders for Python.
_SOURCES = (*digest.SOURCES, "ffma.py")
# The files of same_code.LISTS, and the folders of their kernels' sources, beside include/ and production/.
_FOLDERS = {
    "casts.json": frozenset({"casts"}),
    "training.json": frozenset({"training"}),
    **dict.fromkeys(
        ("fp8_training.json", "model.json", "parallel.json"), frozenset({"casts", "layers", "training"})
    ),
}
# Of Python below kernels/, what a call goes through, and what measures it. The rest is other tools.
_PYTHON = [
    f"{_FOLDER}/{room}*.py"
    for room in ("", "casts/", "checks/", "layers/", "measure/", "production/", "training/", "utils/")
]
Compare = Callable[[Path, "str | None"], list[str]]  # as same_code.differing_kernels


class Carried(NamedTuple):
    """What carry_over() did.

    Attributes:
        changed: the sources that have other tokens.
        replaced: the recorded files that have the present digest now.
        kept: those that keep the earlier one, with what has changed.
    """

    changed: list[str]
    replaced: list[Path]
    kept: dict[Path, str]


def carry_over(repository: Path, commit: str, compare: Compare | None = None) -> Carried:
    """Replace the digest of `commit`'s sources in figures/data by the present one.

    Args:
        repository: the checkout.
        commit: has the sources that were measured.
        compare: names the kernels whose machine code differs between a folder with the earlier sources and
            the present ones: the rungs and production kernels, or those of a recorded file. It is asked if
            tokens differ; None: then nothing is carried over of what has other tokens.

    Raises:
        GemmLadderError: git does not know the commit, or of the rungs and production kernels a source has
            other tokens and nobody compares machine code, or the machine code differs.
    """
    files = _files(repository, commit)
    earlier = [path for path in files if any(fnmatch.fnmatchcase(path, pattern) for pattern in _SOURCES)]
    then = {PurePosixPath(path).name: files[path].decode() for path in earlier}
    paths = [path for pattern in digest.SOURCES for path in (repository / _FOLDER).glob(pattern)]
    now = {path.name: path.read_text(encoding="utf-8") for path in paths}
    folder_of = {PurePosixPath(path).name: PurePosixPath(path).parent.name for path in earlier}
    folder_of |= {path.name: path.parent.name for path in paths}
    changed = sorted(
        name
        for name in then.keys() | now.keys()
        if name not in then
        or name not in now
        or digest.tokens(name, then[name]) != digest.tokens(name, now[name])
    )
    folders = {folder_of[name] for name in changed}
    timed = [name for name in changed if folder_of[name] not in set().union(*_FOLDERS.values())]
    if timed and (compare is None or "ffma.py" in timed):
        raise GemmLadderError(
            f"The recorded files stay as they are: since {commit}, more than comments and white space has "
            f"changed in {', '.join(timed)}."
        )
    then_digests = f"(?:{earlier_digest(files)}|{digest.digest_of(then)})"
    recorded = re.compile(rf'("sources":\s*"){then_digests}(")')
    texts = {path: path.read_text("utf-8") for path in sorted((repository / "figures/data").glob("*.json"))}
    new = {path: recorded.sub(rf"\g<1>{digest.digest_of(now)}\g<2>", text) for path, text in texts.items()}
    found = [path for path in texts if new[path] != texts[path]]
    others = [path for path in found if path.name in _FOLDERS] if changed else []
    kept = {}
    if compare is None:
        touched = [path for path in others if folders & _FOLDERS[path.name]]
        kept = dict.fromkeys(touched, "its kernels' sources have changed")
    elif changed:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).write_bytes(content)
            if timed and (differing := compare(Path(folder), None)):
                raise GemmLadderError(
                    f"The recorded files stay as they are: since {commit}, the machine code of "
                    f"{', '.join(differing)} has changed."
                )
            for path in others:
                if differing := compare(Path(folder), path.name):
                    kept[path] = f"the machine code of {', '.join(differing)} has changed"
    replaced = [path for path in found if path not in kept]
    for path in replaced:
        path.write_text(new[path], encoding="utf-8")
    return Carried(changed, replaced, kept)


def changed_python(repository: Path, commit: str) -> list[str]:
    """The Python files of _PYTHON that were added or removed since a commit, or have other tokens now, as
    paths in the repository. ffma.py is compared above."""

    def listed(status: str) -> list[str]:
        globs = [f":(glob){pattern}" for pattern in _PYTHON]
        options = ("--name-only", "--no-renames", "-z", f"--diff-filter={status}")
        return _git(repository, "diff", *options, commit, "--", *globs).decode().split("\0")[:-1]

    def differs(path: str) -> bool:
        then = _git(repository, "show", f"{commit}:{path}").decode()
        return digest.tokens(path, then) != digest.tokens(path, (repository / path).read_text("utf-8"))

    found = [*listed("AD"), *filter(differs, listed("M"))]
    return sorted(path for path in found if PurePosixPath(path).name != "ffma.py")


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
    """{path below kernels/: content} of the sources at a commit, by either rule, and of what writes casts'
    text."""
    listed = _git(repository, "ls-tree", "-r", "-z", "--name-only", f"{commit}:{_FOLDER}")
    wanted = (".cu", ".cuh", "ffma.py", same_code.CASTS_TEXT)
    paths = [path for path in listed.decode().split("\0") if path.endswith(wanted)]
    return {path: _git(repository, "show", f"{commit}:{_FOLDER}/{path}") for path in paths}


def _git(repository: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True)
    if done.returncode != 0:
        raise GemmLadderError(f"git {' '.join(arguments)} fails: {done.stderr.decode().strip()}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Run carry_over() on this checkout. Exit status 0, or 1 where it refuses."""
    parser = argparse.ArgumentParser(
        prog="python -m gemm_ladder.measure.carry_over",
        description="Replace the digest of a commit's sources in figures/data by the present digest, if "
        "nothing but comments and white space has changed since, or --machine-code finds the same kernels.",
    )
    parser.add_argument("commit", help="has the sources that were measured")
    parser.add_argument(
        "--machine-code",
        action="store_true",
        help="if more has changed, compare the instructions of every kernel that is timed; needs nvcc",
    )
    arguments = parser.parse_args(argv)
    repository = digest.KERNELS.parent
    try:
        compare = same_code.differing_kernels if arguments.machine_code else None
        changed, replaced, kept = carry_over(repository, arguments.commit, compare)
    except GemmLadderError as error:
        print(error, file=sys.stderr)
        return 1
    for path in replaced:
        print(f"{path.relative_to(repository)} has the present digest")
    for path, why in kept.items():
        print(f"{path.relative_to(repository)} keeps its digest: {why}")
    print(f"{len(replaced)} files carried over")
    if arguments.machine_code and changed:
        print(f"Read whether kernels are launched as they were: {', '.join(changed)} have other tokens")
    if replaced and (python := changed_python(repository, arguments.commit)):
        print(f"Read whether the same is measured: {', '.join(python)} have changed since {arguments.commit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Text to train on: the sources of Python's standard library, as the running Python has them.

They are on every machine, are several megabytes of English and code, and need no download. Another version of
Python has other text, so a record says which it was: bytes, SHA-256, and Python's version.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from gemm_ladder.errors import GemmLadderError
from gemm_ladder.figures.rows import CorpusMeta

TESTS = ("test", "tests", "idle_test")  # which some distributions of Python leave out
PACKAGES = ("site-packages", "dist-packages")  # what was installed besides
HELD_OUT_EVERY = 20  # of the files, in the order of their names, one in so many is not trained on
LEAST_BYTES = 1_000_000
END = b"\0"  # between files; no source has it


@dataclass(frozen=True)
class Corpus:
    """A text in two parts.

    Attributes:
        name: what it is, for people.
        train, held_out: the bytes of whole files, with END after each.
        files: how many.
    """

    name: str
    train: bytes
    held_out: bytes
    files: int

    def meta(self) -> CorpusMeta:
        """What a record says of it. The hash is of both parts, `train` first."""
        return {
            "name": self.name,
            "files": self.files,
            "train_bytes": len(self.train),
            "held_out_bytes": len(self.held_out),
            "sha256": hashlib.sha256(self.train + self.held_out).hexdigest(),
        }


def standard_library(folder: Path | None = None) -> Corpus:
    """Every .py file of the standard library, without its tests.

    Args:
        folder: where it is; None: the running Python's.

    Raises:
        GemmLadderError: there is less than LEAST_BYTES of it.
    """
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    train: list[bytes] = []
    held_out: list[bytes] = []
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    chosen = [name for name in names if not {*name.split("/")[:-1]} & {*TESTS, *PACKAGES}]
    for index, name in enumerate(chosen):
        part = train if index % HELD_OUT_EVERY else held_out
        part.append((root / name).read_bytes().replace(END, b"") + END)
    corpus = Corpus(
        f"the sources of Python {platform.python_version()}'s standard library, without its tests",
        b"".join(train),
        b"".join(held_out),
        len(chosen),
    )
    if (size := len(corpus.train) + len(corpus.held_out)) < LEAST_BYTES:
        raise GemmLadderError(
            f"{root} has {size} bytes of Python sources; {LEAST_BYTES} of the standard library are needed as "
            "text to train on"
        )
    return corpus

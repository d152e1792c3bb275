"""The folders that builds need: where the cache is, what replaces it, and whether a folder can be used."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gemm_ladder.errors import ToolchainError

REMEDY = "set GEMM_LADDER_CACHE to a folder that can be written, has room and is not mounted noexec"
SCRATCH = "scratch"  # what the names of scratch()'s folders begin with in the cache folder
_ROOM = 16 << 20  # bytes: more than any build needs for its library and its temporary files


class UnusableFolderError(Exception):
    """A folder cannot keep builds. The message completes the sentence "The folder ..."."""

    @classmethod
    def not_writable(cls, error: OSError) -> UnusableFolderError:
        """Of an error that writing there raised."""
        return cls(f"cannot be written ({error.strerror or error})")


def folder() -> Path:
    """The cache folder: $GEMM_LADDER_CACHE, else gemm_ladder in $DG_JIT_CACHE_DIR, which is where DeepGEMM
    keeps its own, else in $XDG_CACHE_HOME, else in ~/.cache.

    It need not exist, nor be writable. As its specification asks, an XDG_CACHE_HOME that is not an absolute
    path is ignored.
    """
    chosen, xdg = os.environ.get("GEMM_LADDER_CACHE"), os.environ.get("XDG_CACHE_HOME", "")
    if not chosen and (of_deep_gemm := os.environ.get("DG_JIT_CACHE_DIR")):
        chosen = os.path.join(of_deep_gemm, "gemm_ladder")
    if not chosen and os.path.isabs(xdg):
        return Path(xdg) / "gemm_ladder"
    try:
        return Path(chosen or "~/.cache/gemm_ladder").expanduser().absolute()
    except RuntimeError:  # a user without a home, as in some containers
        return temporary_folder()


def temporary_folder() -> Path:
    """What replaces a cache folder that cannot be used: one folder per user, so that processes share builds.

    A library is code, so a folder that another user owns or can write is never used.
    Raises ToolchainError where no temporary folder can be written.
    """
    try:
        path = Path(tempfile.gettempdir()) / f"gemm_ladder-{os.getuid()}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return path
        return Path(tempfile.mkdtemp(prefix="gemm_ladder-"))
    except OSError as error:
        raise ToolchainError(f"There is no temporary folder ({error.strerror or error})", REMEDY) from error


def replace(path: Path, text: str) -> None:
    """Write a file as a whole or not at all: a reader finds the old one or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:  # the disk may be full
        os.unlink(temporary)
        raise


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new folder for a command's temporary files, removed at the end.

    It is in the temporary folder or, where there is none, in the cache folder. Raises ToolchainError where
    neither can be written.
    """
    try:
        try:
            parent = Path(tempfile.gettempdir())
        except FileNotFoundError:
            parent = folder() / "building"
            parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=f"{SCRATCH}.", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        missing = f"Neither a temporary folder nor {folder()} can be written ({error.strerror or error})"
        raise ToolchainError(missing, REMEDY) from error
    with made as path:
        yield Path(path)


def check_loads(library: Path) -> None:
    """Raise UnusableFolderError where the system runs no code from this file, as on a noexec mount.

    The file is mapped into memory as the dynamic loader would map it. macOS maps code only from files that
    are signed, which the linker does, so there this says nothing of a folder.
    """
    if sys.platform == "darwin":
        return
    try:
        with library.open("rb") as file:
            mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
    except OSError as error:
        raise UnusableFolderError(
            f"does not let libraries be loaded ({error.strerror}), as on a noexec mount"
        ) from error


def check(path: Path) -> None:
    """Raise UnusableFolderError where this folder, which may not exist yet, cannot be used for the cache."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableFolderError.not_writable(error) from error
    check_keeps(path)
    check_room(path)


def check_keeps(path: Path) -> None:
    """Raise UnusableFolderError where a library in this folder cannot be built, or not be run."""
    if '"' in str(path) or "\n" in str(path):  # nvcc writes the path into PTX as it is
        raise UnusableFolderError("has a quotation mark or a line break in its path, which nvcc cannot take")
    try:
        with tempfile.NamedTemporaryFile(dir=path) as file:
            file.write(bytes(mmap.PAGESIZE))
            file.flush()
            check_loads(Path(file.name))
    except OSError as error:
        raise UnusableFolderError.not_writable(error) from error


def check_room(path: Path) -> None:
    """Raise UnusableFolderError where the disk of this folder, or the user's share of it, is full."""
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            if sys.platform == "darwin":  # which cannot reserve room, but write
                file.write(bytes(_ROOM))
                file.flush()
            else:
                os.posix_fallocate(file.fileno(), 0, _ROOM)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UnusableFolderError(f"is on a full disk ({error.strerror})") from error

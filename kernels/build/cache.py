"""The folder of built libraries. An entry is whole or not there, and one process builds it at a time.

    FOLDER/KEY/            an entry: NAME.so, build.log, entry.json (the sizes and SHA-256 of both)
    FOLDER/locks/KEY       held (flock) by the process that builds KEY, and free when that ends or is killed
    FOLDER/building/KEY.*  private folder of a builder, which renames what is in it into place as its last act
    FOLDER/answers.json    what compilers said of themselves (toolchain.py)
    FOLDER/tables/         what `gemm_ladder.tune` measured on this machine (production/tuned.py)

An entry is used only if its files have the recorded sizes and hashes: one that a power cut left incomplete is
built again. What a killed builder left is removed, but finished entries are kept for good. The folder may be
deleted at any time; all that cannot be built again is in tables/.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gemm_ladder.build import folders
from gemm_ladder.build.folders import UnusableFolderError, folder
from gemm_ladder.errors import ToolchainError

_ABANDONED_S = 24 * 3600.0  # age of a private folder that is removed where the file system has no locks
_PATIENCE_S = 5.0  # how long a builder waits for another one before it says so
_held: set[int] = set()  # file descriptors of locks, closed in forked children
_answers: dict[str, str | None] = {}


class Made(NamedTuple):
    """What a build made: a library, its log, and whether a SassPass rewrote it (None: there is no pass)."""

    library: Path
    log: str
    rewritten: bool | None = None


@dataclass(frozen=True)
class Entry:
    """A verified entry: what was made, and the seconds that the build took."""

    path: Path
    log: str
    seconds: float
    rewritten: bool | None


def find(root: Path, key: str) -> Entry | None:
    """The entry `key` under `root` if it is whole, else None."""
    try:
        record = json.loads((root / key / "entry.json").read_text())
        contents = {}
        for name, (size, digest) in record["files"].items():
            contents[name] = (root / key / name).read_bytes()
            if len(contents[name]) != size or hashlib.sha256(contents[name]).hexdigest() != digest:
                return None
        path, log = root / key / record["library"], contents["build.log"].decode("utf-8")
        return Entry(path, log, record["seconds"], record["rewritten"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def usage() -> tuple[int, int]:
    """(number of libraries, bytes of everything) in `folder()`, without what is being built just now.

    Other processes may be at work there: a file that one of them removes meanwhile is not counted.
    """
    libraries = size = 0
    root = str(folder())
    for parent, below, names in os.walk(root):
        if parent == root and "building" in below:
            below.remove("building")
        for name in names:
            try:
                size += os.stat(os.path.join(parent, name)).st_size
            except OSError:
                continue
            libraries += name == "entry.json"
    return libraries, size


class TakenError(Exception):
    """The entry is being built by another process or thread, or that cannot be ruled out."""


def get(
    key: str, build: Callable[[Path], Made], patience_s: float = _PATIENCE_S, background: bool = False
) -> tuple[Entry, bool]:
    """The entry `key`, built if need be: (entry, whether it was there already).

    build(private folder) makes a library in that folder; what it raises passes through, and nothing stays.
    Processes and threads that want the same entry at the same time wait for the one that builds it; after
    `patience_s` seconds a line on stderr says so. Where `folder()` cannot be used, a temporary folder is, and
    a warning says so. Raises ToolchainError where that cannot be used either.

    In the background nothing is said, and nothing waited for: raises TakenError where the lock is not free.
    """
    root = folder()
    patience = None if background else patience_s
    try:
        entry = find_usable(root, key)
        return (entry, True) if entry else _get_locked(root, key, build, patience)
    except UnusableFolderError as error:
        trouble = f"The cache folder {root} {error}"
    try:
        fallback = folders.temporary_folder()
    except ToolchainError as error:
        raise ToolchainError(f"{trouble}, and there is no temporary folder", folders.REMEDY) from error
    if not background:
        warnings.warn(f"{trouble}: building under {fallback}. To end this, {folders.REMEDY}.", stacklevel=4)
    try:
        return _get_locked(fallback, key, build, patience)
    except UnusableFolderError as error:
        raise ToolchainError(f"{trouble}, and {fallback} {error}", folders.REMEDY) from error


def find_usable(root: Path, key: str) -> Entry | None:
    """As find(). Raises UnusableFolderError where the entry is whole and its library cannot be loaded."""
    entry = find(root, key)
    if entry is not None:
        folders.check_loads(entry.path)
    return entry


def _get_locked(
    root: Path, key: str, build: Callable[[Path], Made], patience_s: float | None
) -> tuple[Entry, bool]:
    """As get(), in the folder `root`; without patience: in the background.

    Raises UnusableFolderError where the folder cannot be used.
    """
    with _lock(root, key, patience_s) as locked:
        entry = find_usable(root, key)
        if entry is not None:
            return entry, True
        try:
            _remove_abandoned(root, key if locked else None)
            private = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=root / "building"))
        except OSError as error:
            raise UnusableFolderError.not_writable(error) from error
        try:
            folders.check_keeps(private)
            started = time.perf_counter()
            made = build(private)
            _publish(root, key, private, made, time.perf_counter() - started)
        except Exception as error:
            # A full disk makes compilers fail as well, each with words of its own.
            folders.check_room(private)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise UnusableFolderError.not_writable(error) from error
            raise
        finally:
            shutil.rmtree(private, ignore_errors=True)
        entry = find(root, key)
        if entry is None:
            raise UnusableFolderError("does not keep what is written to it")
        return entry, False


def _publish(root: Path, key: str, private: Path, made: Made, seconds: float) -> None:
    """Put a finished build in place with one rename; a damaged entry there is moved out of the way first."""
    staged = private / "entry"
    staged.mkdir()
    made.library.rename(staged / made.library.name)
    (staged / "build.log").write_text(made.log, encoding="utf-8")
    files = {}
    for name in (made.library.name, "build.log"):
        content = (staged / name).read_bytes()
        files[name] = [len(content), hashlib.sha256(content).hexdigest()]
    record = {"library": made.library.name, "files": files, "seconds": seconds, "rewritten": made.rewritten}
    (staged / "entry.json").write_text(json.dumps(record))
    if _renamed(staged, root / key) or find(root, key):  # without locks, another builder may have been first
        return
    with contextlib.suppress(FileNotFoundError):
        (root / key).rename(private / "damaged")
    _renamed(staged, root / key)


def _renamed(staged: Path, entry: Path) -> bool:
    """Rename `staged` to `entry`. Returns False where something is there already."""
    try:
        staged.rename(entry)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


@contextlib.contextmanager
def _lock(root: Path, key: str, patience_s: float | None) -> Iterator[bool]:
    """Hold the lock of `key`, waiting for it; yields whether it is held.

    Where the file system has no locks, go on without: a build may then be done twice, but publishing by
    rename keeps every entry whole. If `patience_s` is None, raise TakenError instead of either.
    """
    try:
        for name in ("locks", "building"):
            (root / name).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / "locks" / key, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UnusableFolderError.not_writable(error) from error
    if not os.access(root, os.W_OK):
        os.close(descriptor)
        raise UnusableFolderError.not_writable(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    _held.add(descriptor)
    try:
        locked = False
        try:
            if patience_s is None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                _wait_for(descriptor, root / "locks" / key, patience_s)
            locked = True
        except OSError:
            if patience_s is None:
                raise TakenError(key) from None
        yield locked
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _wait_for(descriptor: int, path: Path, patience_s: float) -> None:
    """Take a lock. After some seconds in vain, say once on stderr what is waited for."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        pass
    words = f"gemm_ladder: waiting for another process or thread that builds {path.name} (it holds {path})"
    notice = threading.Timer(patience_s, lambda: print(words, file=sys.stderr, flush=True))
    notice.daemon = True
    notice.start()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        notice.cancel()


def _close_in_child() -> None:
    # A forked child shares its parent's locks. If the parent were killed, the child would go on holding them.
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _remove_abandoned(root: Path, held: str | None) -> None:
    """Remove what killed builders left: the private folders whose lock is free, or is ours (`held`)."""
    for private in (root / "building").iterdir():
        key = private.name.rpartition(".")[0]
        if key == held:
            shutil.rmtree(private, ignore_errors=True)
        elif key == folders.SCRATCH:  # these have no lock
            _remove_if_old(private)
        else:
            _remove_if_free(private, root / "locks" / key)


def _remove_if_free(private: Path, lock: Path) -> None:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(private, ignore_errors=True)
    except BlockingIOError:
        pass  # its builder lives
    except OSError:
        _remove_if_old(private)
    finally:
        os.close(descriptor)


def _remove_if_old(private: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - private.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(private, ignore_errors=True)


def remember(key: str, ask: Callable[[], str | None]) -> str | None:
    """ask(), or what it gave last time for the same `key`, in this process or (by a file) in another."""
    if key in _answers:
        return _answers[key]
    path = folder() / "answers.json"
    try:
        known = json.loads(path.read_text())
        if isinstance(known, dict):
            _answers.update(known)
    except (OSError, ValueError):
        known = {}
    if key not in _answers:
        answer = ask()
        if answer is None:
            return None  # a failure may pass: ask again next time
        _answers[key] = answer
        with contextlib.suppress(OSError):
            folders.replace(path, json.dumps(dict(_answers)))
    return _answers[key]

"""The folder of built libraries: whole entries or none, one builder at a time, nothing to clean up by hand.

    FOLDER/KEY/            an entry: NAME.so, build.log, entry.json (the sizes and SHA-256 of both)
    FOLDER/locks/KEY       held (flock) by the process that builds KEY; when it dies, the kernel lets go
    FOLDER/building/KEY.*  private folder of a builder, which renames what is in it into place as its last act
    FOLDER/answers.json    what compilers said of themselves (toolchain.py)

An entry is not trusted for being there: it is used only if its files have the recorded sizes and hashes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_ABANDONED_S = 24 * 3600.0  # age of a private folder that is removed where the file system has no locks
_held: set[int] = set()  # file descriptors of locks, closed in forked children
_answers: dict[str, str | None] = {}


@dataclass(frozen=True)
class Entry:
    """A verified entry: the library, the compiler's whole output, and the seconds that the build took."""

    path: Path
    log: str
    seconds: float


def folder() -> Path:
    """$GEMM_LADDER_CACHE, or ~/.cache/gemm_ladder. It need not exist, nor be writable."""
    chosen = os.environ.get("GEMM_LADDER_CACHE")
    try:
        return Path(chosen or "~/.cache/gemm_ladder").expanduser().absolute()
    except RuntimeError:  # a user without a home, as in some containers
        return temporary_folder()


def temporary_folder() -> Path:
    """The folder used where `folder()` cannot be written: one per user, so that processes still share builds.

    A library is code, so a folder that another user owns or can write is never used.
    """
    path = Path(tempfile.gettempdir()) / f"gemm_ladder-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
        return path
    return Path(tempfile.mkdtemp(prefix="gemm_ladder-"))


def find(root: Path, key: str) -> Entry | None:
    """The entry `key` under `root` if it is whole, else None."""
    try:
        record = json.loads((root / key / "entry.json").read_text())
        contents = {}
        for name, (size, digest) in record["files"].items():
            contents[name] = (root / key / name).read_bytes()
            if len(contents[name]) != size or hashlib.sha256(contents[name]).hexdigest() != digest:
                return None
        return Entry(root / key / record["library"], contents["build.log"].decode("utf-8"), record["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def usage() -> tuple[int, int]:
    """(number of libraries, bytes of everything) in `folder()`, without what is being built just now.

    Other processes may be at work there: what vanishes meanwhile is not counted.
    """
    libraries = size = 0
    root = str(folder())
    for parent, folders, names in os.walk(root):
        if parent == root and "building" in folders:
            folders.remove("building")
        for name in names:
            try:
                size += os.stat(os.path.join(parent, name)).st_size
            except OSError:
                continue
            libraries += name == "entry.json"
    return libraries, size


def get(key: str, build: Callable[[Path], tuple[Path, str]]) -> tuple[Entry, bool]:
    """The entry `key`, built if need be: (entry, whether it was there already).

    build(private folder) -> (library in that folder, log); what it raises passes through, and nothing stays.
    Processes and threads that want the same entry at the same time wait for the one that builds it.
    """
    root = folder()
    entry = find(root, key)
    if entry is not None:
        return entry, True
    try:
        return _get_locked(root, key, build)
    except _NotWritableError as error:
        fallback = temporary_folder()
        warnings.warn(
            f"The cache folder {root} cannot be written ({error}): building under {fallback}. "
            "Set GEMM_LADDER_CACHE to a folder that can be.",
            stacklevel=3,
        )
        return _get_locked(fallback, key, build)


def _get_locked(root: Path, key: str, build: Callable[[Path], tuple[Path, str]]) -> tuple[Entry, bool]:
    with _lock(root, key) as locked:
        entry = find(root, key)
        if entry is not None:
            return entry, True
        try:
            _remove_abandoned(root, key if locked else None)
            private = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=root / "building"))
        except OSError as error:
            raise _NotWritableError(error.strerror) from error
        try:
            started = time.perf_counter()
            library, log = build(private)
            seconds = time.perf_counter() - started
            _publish(root, key, private, library, log, seconds)
        finally:
            shutil.rmtree(private, ignore_errors=True)
        entry = find(root, key)
        if entry is None:
            raise OSError(f"The entry {root / key} was damaged while it was written: is the disk full?")
        return entry, False


class _NotWritableError(Exception):
    """The cache folder cannot be written."""


def _publish(root: Path, key: str, private: Path, library: Path, log: str, seconds: float) -> None:
    """Put a finished build in place with one rename; a damaged entry there is moved out of the way first."""
    staged = private / "entry"
    staged.mkdir()
    library.rename(staged / library.name)
    (staged / "build.log").write_text(log, encoding="utf-8")
    files = {}
    for name in (library.name, "build.log"):
        content = (staged / name).read_bytes()
        files[name] = [len(content), hashlib.sha256(content).hexdigest()]
    record = {"library": library.name, "files": files, "seconds": seconds}
    (staged / "entry.json").write_text(json.dumps(record))
    if _renamed(staged, root / key) or find(root, key):  # or another builder was first, for want of locks
        return
    with contextlib.suppress(FileNotFoundError):
        (root / key).rename(private / "damaged")
    _renamed(staged, root / key)


def _renamed(staged: Path, entry: Path) -> bool:
    """Whether `entry` was free, and is `staged` now."""
    try:
        staged.rename(entry)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


@contextlib.contextmanager
def _lock(root: Path, key: str) -> Iterator[bool]:
    """Hold the lock of `key`, waiting for it; yields whether it is held.

    Where the file system has no locks, go on without: a build may then be done twice, but publishing by
    rename keeps every entry whole.
    """
    try:
        for name in ("locks", "building"):
            (root / name).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / "locks" / key, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _NotWritableError(error.strerror) from error
    if not os.access(root, os.W_OK):
        os.close(descriptor)
        raise _NotWritableError(os.strerror(errno.EACCES))
    _held.add(descriptor)
    try:
        locked = False
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            locked = True
        yield locked
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _close_in_child() -> None:
    # A forked child shares its parent's locks: were the parent killed, they would be held until its own end.
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _remove_abandoned(root: Path, held: str | None) -> None:
    """Remove what killed builders left: the private folders whose lock nobody holds, or we do (`held`)."""
    for private in (root / "building").iterdir():
        key = private.name.rpartition(".")[0]
        if key == held:
            shutil.rmtree(private, ignore_errors=True)
            continue
        try:
            descriptor = os.open(root / "locks" / key, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(private, ignore_errors=True)
        except BlockingIOError:
            pass  # its builder lives
        except OSError:
            with contextlib.suppress(OSError):
                if time.time() - private.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(private, ignore_errors=True)
        finally:
            os.close(descriptor)


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
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix="answers.", dir=path.parent)
            with os.fdopen(handle, "w") as file:
                json.dump(dict(_answers), file)
            os.replace(temporary, path)
    return _answers[key]

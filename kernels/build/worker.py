"""One build in a process of its own: run() starts the process, _main() runs in it. It is done by torch's
load_inline or, where there is no torch, by the C++ compiler alone, which builds all but kernels for a GPU.

load_inline shows its compiler's output only by printing it, takes settings from the environment and from
module globals, is not safe in threads, and loads what it has built. In a process of its own none of that
reaches the caller, and what was printed is the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

_running: set[subprocess.Popen[bytes]] = set()
_ended = False

# The folder that a process runs in, by a name that needs no quotes; macOS has none that is absolute.
HERE = "/proc/self/cwd" if sys.platform == "linux" else os.curdir


def is_plain(path: str) -> bool:
    """Whether a path can be given to torch and ninja. They escape spaces in it, but not "$" or ":"."""
    return re.fullmatch(r"[\w@%+=,./ -]+", path, re.ASCII) is not None


def run(request: dict[str, Any], environment: dict[str, str], output: Path) -> tuple[int, str]:
    """Run one build: (exit status, negative for a signal; all that was printed, by way of the file `output`).

    request: name, folder, cxx_source, cuda_source or None, cxx_flags, cuda_flags, link_flags and
    torch_libraries, which are load_inline's arguments, with flags not quoted, except for the last: torch's
    lib folder, or None where there is no torch.
    It runs in `folder`. It ends when this process ends, also when this process is killed.
    """
    # -I: no script folder in sys.path, where a module of ours could be taken for one of Python's.
    command = [sys.executable, "-I", "-X", "utf8", os.path.abspath(__file__)]
    request = {**request, "sys_path": [os.path.abspath(entry) for entry in sys.path]}
    sent = json.dumps({name: _in_utf8(value) for name, value in request.items()})
    with output.open("wb") as log:
        worker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=request["folder"],
            env=environment,
            start_new_session=True,
        )
        _running.add(worker)
        try:
            if _ended:
                _end(worker)
            # A worker that dies at once leaves a broken pipe; its exit status and output say more.
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(sent.encode() + b"\n")
                worker.stdin.flush()
            code = worker.wait()  # the pipe stays open meanwhile: the worker takes its closing for our end
        except BaseException:
            _end(worker)
            worker.wait()
            raise
        finally:
            _running.discard(worker)
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
    return code, output.read_text(encoding="utf-8", errors="replace")


def quoted(flag: str) -> str:
    """A flag, quoted for the shell and then for ninja."""
    return shlex.quote(flag).replace("$", "$$")


def end_all() -> None:
    """End all builds of this process, and those that begin from now on."""
    global _ended
    _ended = True
    for worker in list(_running):
        _end(worker)


def _end(worker: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGTERM)


os.register_at_fork(after_in_child=_running.clear)  # they are the parent's


def _in_utf8(value: Any) -> Any:
    """A part of a request, for a Python that takes all text and paths for UTF-8.

    Where ours takes paths for ASCII (LC_ALL=C), other characters in them have become one surrogate a byte.
    """
    if isinstance(value, list):
        return [_in_utf8(one) for one in value]
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return value


def _main() -> None:
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.path[:] = request["sys_path"]
    if request["torch_libraries"] is None:
        _with_compiler(request)
    else:
        _with_torch(request)
    # Taking torch apart, as an ordinary exit does, takes 0.4 s, and nothing in this process needs it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _with_compiler(request: dict[str, Any]) -> None:
    """Compile, link and load the library as load_inline does, without torch."""
    compiler, name = os.environ["CXX"], request["name"]
    Path("main.cpp").write_text(request["cxx_source"], encoding="utf-8")
    for command in (
        [compiler, *request["cxx_flags"], "-fPIC", "-c", "main.cpp", "-o", "main.o"],
        [compiler, "main.o", "-shared", *request["link_flags"], "-o", f"{name}.so"],
    ):
        print(shlex.join(command), flush=True)
        if code := subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
            sys.exit(f"{compiler} ends with status {code}")
    try:
        ctypes.CDLL(os.path.abspath(f"{name}.so"))
    except OSError as error:
        sys.exit(f"OSError: {error}")


def _with_torch(request: dict[str, Any]) -> None:
    gc.disable()  # importing torch makes many objects and no garbage: a seventh of its time is collections
    logging.disable(logging.WARNING)  # torch warns at import that it sees no GPU, as is intended here
    warnings.simplefilter("ignore")
    import torch
    from torch.utils import cpp_extension

    if "no_implicit_headers" not in inspect.signature(cpp_extension.load_inline).parameters:
        sys.exit(f"torch {torch.__version__} is too old: its load_inline has no no_implicit_headers.")
    # torch puts this on the link line unquoted, and it may have a space in it.
    cpp_extension.TORCH_LIB_PATH = quoted(request["torch_libraries"])
    try:
        cpp_extension.load_inline(
            name=request["name"],
            cpp_sources=[request["cxx_source"]],
            cuda_sources=[request["cuda_source"]] if request["cuda_source"] is not None else [],
            extra_cflags=[quoted(flag) for flag in request["cxx_flags"]],
            extra_cuda_cflags=[quoted(flag) for flag in request["cuda_flags"]],
            extra_ldflags=[quoted(flag) for flag in request["link_flags"]],
            # Ninja and what it starts run in the folder too, so each of them finds it under that name.
            build_directory=request["folder"] if is_plain(request["folder"]) else HERE,
            is_python_module=False,
            no_implicit_headers=True,
            verbose=True,
        )
    except Exception as error:
        # The compiler's own output is printed already; what the loader says is the cause of torch's error.
        cause = f": {error.__cause__}" if isinstance(error, OSError) and error.__cause__ else ""
        sys.exit(f"{type(error).__name__}: {error}{cause}")


def _end_with_parent() -> None:
    """Wait for the pipe's other end to close, as it does when the parent ends or is killed; end the build.

    SIGTERM goes to ninja as well (this process leads its group), which ends its compilers.
    """
    sys.stdin.read()
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    _main()

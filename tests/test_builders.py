"""Many processes that build the same library, and builders that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from building import alive, compiler_that, wait_until
from gemm_ladder import build


def test_eight_processes_build_once(tmp_path: Path, folder: Path) -> None:
    log = tmp_path / "compilations"
    code = """
    import sys, threading
    from gemm_ladder import build
    def make():
        built = build.load('extern "C" int answer() { return 42; }\\n', target="host")
        sys.stdout.write(f"{'cached' if built.cached else 'built'} {built.lib.answer()}\\n")
    threads = [threading.Thread(target=make) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    """
    environment = {**os.environ, "CXX": compiler_that(tmp_path / "counting", f"echo compiled >> '{log}'")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outputs
    lines = sorted(line for output, _ in outputs for line in output.splitlines())
    assert lines == ["built 42"] + ["cached 42"] * 15
    assert log.read_text() == "compiled\n"
    assert list((folder / "building").iterdir()) == []


SLOWLY = 'if [ -e {0}/slow ]; then echo "$$ $TMPDIR" > {0}/new; mv {0}/new {0}/compiling; sleep 60; fi'


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file: while it is there, the compiler writes its process and its TMPDIR beside it, and hangs."""
    monkeypatch.setenv("CXX", compiler_that(tmp_path / "cxx", SLOWLY.format(f"'{tmp_path}'")))
    (tmp_path / "slow").touch()
    return tmp_path / "slow"


def wait_for_compiler(slow: Path) -> tuple[int, Path]:
    """The process and the TMPDIR of the hanging compiler, once it hangs."""
    wait_until((slow.parent / "compiling").exists, 60)
    process, folder = (slow.parent / "compiling").read_text().split()
    return int(process), Path(folder)


def test_killed_builder_leaves_nothing_behind(folder: Path, slow: Path) -> None:
    source = 'extern "C" int answer() { return 42; }\n'
    code = f"from gemm_ladder import build; build.compile({source!r}, target='host')"
    builder = subprocess.Popen([sys.executable, "-c", code])
    compiler, temporary = wait_for_compiler(slow)
    (private,) = (folder / "building").iterdir()
    assert temporary == private, "what compilers put there goes with the folder"

    waiter = subprocess.Popen([sys.executable, "-c", code])
    time.sleep(0.5)
    assert waiter.poll() is None and list((folder / "building").iterdir()) == [private], (
        "the second one waits"
    )
    waiter.kill()
    waiter.wait()

    builder.send_signal(signal.SIGKILL)
    builder.wait()
    wait_until(lambda: not alive(compiler), 20)  # its compilers end with it
    assert private.exists(), "a process that is killed cannot tidy up"
    assert not list(folder.glob("inline-*")), "no entry"

    slow.unlink()
    built = build.load(source, target="host")
    assert built.path.parent.name == private.name.rpartition(".")[0], "the same entry"
    assert built.lib.answer() == 42 and not built.cached
    assert list((folder / "building").iterdir()) == []


def test_interrupted_builder_ends_its_compilers(folder: Path, slow: Path) -> None:
    # A shell's background job, as the suite may be, ignores Ctrl-C, and so do its children by default.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{listen}\nfrom gemm_ladder import build; build.compile('int x;\\n', target='host')"
    builder = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    compiler, _ = wait_for_compiler(slow)
    builder.send_signal(signal.SIGINT)  # Ctrl-C
    _, stderr = builder.communicate(timeout=20)
    assert "KeyboardInterrupt" in stderr
    wait_until(lambda: not alive(compiler), 20)
    assert list((folder / "building").iterdir()) == []

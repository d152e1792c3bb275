"""Finding compilers on machines made of shell scripts: what is found, and what is said where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gemm_ladder import build
from gemm_ladder.build import cache, toolchain


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def toolkit(home: Path, version: str, libraries: str = "lib64", cudart: str = "libcudart.so") -> Path:
    """A folder that looks like a CUDA toolkit from outside."""
    script(
        home / "bin" / "nvcc",
        f'case "$1" in --dryrun) echo "#$ TOP={home}/bin/..";; *) echo "V{version}";; esac',
    )
    (home / libraries).mkdir(parents=True)
    (home / libraries / cudart).write_text("")
    return home


@pytest.fixture
def bare(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without compilers: an empty PATH (returned), and no CUDA in the environment or from PyPI."""
    (tmp_path / "bin").mkdir()
    for variable in ("CXX", "CC", "CUDA_HOME", "CUDA_PATH", "NVCC_CCBIN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(toolchain, "SYSTEM_CUDA", tmp_path / "no cuda")
    return tmp_path / "bin"


def test_toolkit_is_looked_for_in_order(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(build.ToolchainError, match="no CUDA compiler: ") as caught:
        build.find_cuda()
    assert f"{sys.executable} -m pip install 'gemm-ladder[cuda]'" in str(caught.value)
    monkeypatch.setattr(toolchain, "SYSTEM_CUDA", toolkit(tmp_path / "system", "13.3.1"))
    assert build.find_cuda().version == "13.3.1"

    pypi = toolkit(tmp_path / "site" / "nvidia" / "cu13", "13.2.1", "lib", "libcudart.so.13")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    assert build.find_cuda().version == "13.3.1", "PyPI's is not whole"
    for part in (
        "include/crt/host_config.h",
        "include/cuda_runtime.h",
        "include/cccl/cuda/std/cstdint",
        "nvvm/bin/cicc",
    ):
        (pypi / part).parent.mkdir(parents=True, exist_ok=True)
        (pypi / part).write_text("")
    found = build.find_cuda()
    assert (found.version, found.origin, found.home) == ("13.2.1", "PyPI", pypi)
    assert found.cudart == pypi / "lib" / "libcudart.so.13"

    real = toolkit(tmp_path / "real", "13.1.1")
    script(bare / "nvcc", f'exec "{real}/bin/nvcc" "$@"')  # a wrapper, whose parent is no toolkit
    found = build.find_cuda()
    assert (found.version, found.home) == ("13.1.1", real)

    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "chosen", "12.8.93")))
    assert build.find_cuda().version == "12.8.93"


def test_unusable_toolkits_are_named(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "old", "11.8.89")))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "nothing"))
    toolkit(tmp_path / "site" / "nvidia" / "cu13", "13.0.88", "lib", "libcudart.so.13")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    with pytest.raises(build.ToolchainError) as caught:
        build.find_cuda()
    message = str(caught.value)
    assert "is version 11.8.89, and 12.5 or newer is needed" in message
    assert "nothing (CUDA_PATH) has no bin/nvcc" in message
    assert "lacks nvidia-cuda-crt, nvidia-cuda-runtime, nvidia-cuda-cccl, nvidia-nvvm" in message


def test_cxx_compiler_is_found_or_asked_for(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(build.ToolchainError, match=r"no C\+\+ compiler on PATH: install g\+\+ 11"):
        build.find_cxx()
    script(bare / "clang++", 'echo "clang version 18.1"')
    assert build.find_cxx().version == "clang version 18.1"
    script(bare / "g++", 'case "$*" in *-std=c++20*) exit 1;; esac; echo "g++ 9.4.0"')
    with pytest.raises(build.ToolchainError, match=r"g\+\+ 9\.4\.0\) does not compile C\+\+20: g\+\+ 11 or"):
        build.find_cxx()
    monkeypatch.setenv("CXX", "clang++ -m64")
    assert build.find_cxx().command == (str(bare / "clang++"), "-m64")
    monkeypatch.chdir(bare.parent)
    monkeypatch.setenv("CXX", "bin/clang++")
    assert build.find_cxx().command == (str(bare / "clang++"),), "a build does not run in this folder"
    monkeypatch.setenv("CXX", "icpc")
    with pytest.raises(build.ToolchainError, match="CXX is 'icpc', which is not on this machine"):
        build.find_cxx()


@pytest.mark.parametrize(
    ("value", "fault"),
    [("g++ 'x", "whose quotes do not close"), ("'", "whose quotes do not close"), ("g++ \\", "backslash")],
)
def test_commands_that_are_no_words(
    bare: Path, monkeypatch: pytest.MonkeyPatch, value: str, fault: str
) -> None:
    finders = {
        "CXX": build.find_cxx,
        "CC": toolchain.host_compiler,
        "NVCC_CCBIN": toolchain.host_compiler,
    }
    for variable, find in finders.items():
        monkeypatch.setenv(variable, value)
        with pytest.raises(build.ToolchainError) as caught:
            find()
        assert str(caught.value).startswith(f"{variable} is {value!r}, wh") and fault in str(caught.value)


def test_host_compiler(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert toolchain.host_compiler() == "none"
    for variable, name in [("PATH", "gcc"), ("CC", "cc"), ("NVCC_CCBIN", "g++-12")]:
        script(bare / name, f"echo {name} speaks")
        if variable != "PATH":
            monkeypatch.setenv(variable, f"{name} -m64")
        assert toolchain.host_compiler() == f"{bare / name}\n{name} speaks\n"
    monkeypatch.delenv("NVCC_CCBIN")
    monkeypatch.setenv("CC", " ")
    assert toolchain.host_compiler() == "none"


def test_answers_are_remembered_until_the_compiler_changes(
    bare: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = bare.parent / "asked"
    text = f"echo x >> '{asked}'; echo version 1"
    script(bare / "c++", text)
    for _ in range(3):
        assert build.find_cxx().version == "version 1"
        monkeypatch.setattr(cache, "_answers", {})  # as in a new process
    assert asked.read_text() == "x\nx\n", "its version, and whether it has C++20"
    script(bare / "c++", text.replace("version 1", "version two"))
    assert build.find_cxx().version == "version two"
    (folder / "answers.json").write_text("[half")
    monkeypatch.setattr(cache, "_answers", {})
    assert build.find_cxx().version == "version two"


def test_missing_torch_and_cpu_torch(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(build.ToolchainError, match="torch is not installed"):
        build.compile("int x;\n", target="cuda")
    monkeypatch.undo()

    package = tmp_path / "torch"
    package.mkdir()
    spec = type("Spec", (), {"origin": str(package / "__init__.py")})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(
        build.ToolchainError, match=r"has no version\.py that can be read: .*--force-reinstall"
    ):
        build.compile("int x;\n", target="cuda")
    (package / "version.py").write_text(
        "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip = None\n"
    )
    with pytest.raises(build.ToolchainError, match=r"torch 2\.13\.0\+cpu is built without CUDA"):
        build.compile("int x;\n", target="cuda")


def test_a_clang_that_is_too_old_is_refused(bare: Path) -> None:
    script(bare / "c++", 'case "$*" in *trace-loads*) exit 1;; esac; echo "clang version 13.0.1"')
    with pytest.raises(build.ToolchainError, match=r"version 13\.0\.1.*clang\+\+ 14 or newer is needed"):
        build.find_cxx()
    script(bare / "c++", 'echo "clang version 14.0.6"')
    assert build.find_cxx().version == "clang version 14.0.6"


def test_ninja_is_found_beside_python(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda kind: str(bare.parent / kind))
    with pytest.raises(build.ToolchainError, match="ninja is not installed"):
        toolchain.find_ninja()
    ninja = script(bare.parent / "scripts" / "ninja", "exit 0")
    assert toolchain.find_ninja() == ninja

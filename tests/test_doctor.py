"""`python -m gemm_ladder doctor`: what it finds here, and what it says of machines that lack something."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gemm_ladder import build
from gemm_ladder.build import BuildError, ToolchainError, doctor, toolchain

HOPPER = ["NVIDIA H100 80GB HBM3", 9, 0, 80 * 2**30, 132]
AMPERE = ["NVIDIA A100", 8, 0, 40 * 2**30, 108]
VERDICTS = {
    "emulator": ("Kernels on the emulator: yes.", "Kernels on the emulator: no, see above."),
    "gpu": ("Kernels on a GPU: yes.", "Kernels on a GPU: no"),
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that has everything; tests take things away from it. No compiler is run."""
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(tmp_path))
    cxx = toolchain.Cxx(("/usr/bin/g++",), "g++ 12.2.0", "g++")
    cuda = toolchain.Cuda(Path("/opt/cuda"), Path("/opt/cuda/lib64"), "13.0.88", "CUDA_HOME", "nvcc")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_cuda.so").touch()
    torch = toolchain.Torch("2.14.1+cu130", "13.0", tmp_path)
    monkeypatch.setattr(toolchain, "find_cxx", lambda: cxx)
    monkeypatch.setattr(toolchain, "find_cuda", lambda: cuda)
    monkeypatch.setattr(toolchain, "find_torch", lambda: torch)
    monkeypatch.setattr(toolchain, "find_ninja", lambda: Path("/usr/bin/ninja"))
    monkeypatch.setattr(toolchain, "find_tool", lambda name: Path("/opt/cuda/bin") / name)
    monkeypatch.setattr(doctor, "_devices", lambda: ([HOPPER], ""))
    monkeypatch.setattr(doctor, "_run", lambda library: doctor.Check("emulator run", True, "yes"))
    monkeypatch.setattr(doctor, "_trouble", lambda arguments: "")
    monkeypatch.setattr(
        build, "compile", lambda text, **options: build.Built(tmp_path, "", 1.5, False, "emulator")
    )
    return monkeypatch


def fails(*fields: str, kind: type[Exception] = ToolchainError) -> object:
    def run(*arguments: object, **options: object) -> None:
        raise kind(*fields)

    return run


def diagnose(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = doctor.main([])
    return status, capsys.readouterr().out


def test_machine_with_everything(machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = diagnose(capsys)
    assert status == 0
    assert "--" not in text and "->" not in text
    assert VERDICTS["emulator"][0] in text and VERDICTS["gpu"][0] in text
    assert "0: NVIDIA H100 80GB HBM3, sm_90, 80 GiB, 132 SMs" in text
    assert "13.0.88, /opt/cuda (CUDA_HOME)" in text


@pytest.mark.parametrize(
    ("lacks", "value", "said", "emulator", "gpu"),
    [
        ("find_cxx", fails("There is no C++ compiler", "install g++"), "-> install g++", False, False),
        (
            "find_torch",
            fails("torch: it is not installed", "pip install torch"),
            "-> pip install torch",
            True,
            False,
        ),
        (
            "find_ninja",
            fails("ninja is not installed", "pip install ninja"),
            "-> pip install ninja",
            False,
            False,
        ),
        (
            "find_cuda",
            fails("There is no CUDA compiler", "pip install 'gemm-ladder[cuda]'"),
            "-> pip install 'gemm-ladder[cuda]'",
            True,
            False,
        ),
        (
            "find_tool",
            lambda name: None,
            f"-> {toolchain.PIP} nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm",
            True,
            True,
        ),
        (
            "find_torch",
            lambda: toolchain.Torch("2.13.0+cpu", None, Path("/nowhere")),
            "-> install a torch that is built with CUDA",
            True,
            False,
        ),
    ],
)
def test_what_is_missing_is_said_with_its_remedy(
    machine: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lacks: str,
    value: object,
    said: str,
    emulator: bool,
    gpu: bool,
) -> None:
    machine.setattr(toolchain, lacks, value)
    status, text = diagnose(capsys)
    assert said in text
    assert VERDICTS["emulator"][not emulator] in text and VERDICTS["gpu"][not gpu] in text
    assert status == (0 if emulator else 1)


@pytest.mark.parametrize(
    ("devices", "trouble", "said", "gpu"),
    [
        ([], "none: there is no NVIDIA driver on this machine", "there is no NVIDIA driver", False),
        ([], "", "torch sees none", False),
        ([AMPERE], "", "0: NVIDIA A100, sm_80", False),
        ([AMPERE, HOPPER], "", "1: NVIDIA H100 80GB HBM3, sm_90", True),
    ],
)
def test_gpu_must_be_hopper(
    machine: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    devices: list[list[object]],
    trouble: str,
    said: str,
    gpu: bool,
) -> None:
    machine.setattr(doctor, "_devices", lambda: (devices, trouble))
    status, text = diagnose(capsys)
    assert status == 0 and said in text
    assert ("A Hopper GPU (sm_90" in text) == (not gpu)
    assert ("Kernels on a GPU: yes." if gpu else "Kernels on a GPU: no, but they compile.") in text


def test_compiler_that_fails_is_shown(
    machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = ("doctor.cu (emulator) does not build with g++ 12.2.0:", "ld: cannot find -lstdc++")
    machine.setattr(build, "compile", fails(*fault, kind=BuildError))
    status, text = diagnose(capsys)
    assert status == 1
    assert "cannot find -lstdc++" in text, "the compiler's own words"
    assert "cuda build" not in text, "what needs the emulator's compiler is not tried"


def test_packages_and_cache(
    machine: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.setitem(doctor._PACKAGES, "no_such_package", "no-such-package")
    (tmp_path / "file").touch()
    machine.setenv("GEMM_LADDER_CACHE", str(tmp_path / "file" / "cache"))
    status, text = diagnose(capsys)
    assert status == 1
    assert f"-> {sys.executable} -m pip install no-such-package" in text
    assert "it cannot be written (Not a directory)" in text and "-> set GEMM_LADDER_CACHE to" in text
    assert "; until then" in text, "a temporary folder replaces it"


def test_no_folder_to_build_in(
    machine: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    machine.setenv("GEMM_LADDER_CACHE", str(tmp_path / "file" / "cache"))
    machine.setattr("tempfile.gettempdir", fails("No usable temporary directory", kind=FileNotFoundError))
    status, text = diagnose(capsys)
    assert status == 1 and VERDICTS["emulator"][1] in text
    assert "it cannot be written (Not a directory)" in text and "until then" not in text


def test_folder_whose_libraries_do_not_load(
    machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.setattr("mmap.mmap", fails(kind=PermissionError))
    status, text = diagnose(capsys)
    assert status == 1 and "it does not let libraries be loaded" in text, "nor does the temporary folder"


def test_cached_library_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "damaged.so").write_text("not a library")
    built = build.Built(tmp_path / "damaged.so", "", 0.0, True, "cuda")
    monkeypatch.setattr(build, "compile", lambda text, **options: built)
    (check,) = doctor._trial("cuda")
    assert not check.ok and check.found.startswith("fails: OSError: ") and "damaged.so" in check.found


def test_another_major_version_is_noted(
    machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = toolchain.find_torch()
    machine.setattr(toolchain, "find_torch", lambda: toolchain.Torch(torch.version, "12.8", torch.folder))
    assert "torch is built for CUDA 12.8, and the driver must serve both" in diagnose(capsys)[1]


def test_json(machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["emulator"], report["gpu"]) == (True, True)
    assert {check["name"] for check in report["checks"]} >= {"torch", "C++ compiler", "nvcc", "GPU", "cache"}


TRIALS = {
    "a broken Numba": ("", "broken", "fails: ImportError: no LLVM"),
    "a crash": (
        "*static_cast<volatile int*>(nullptr) = 1;",
        "",
        "fails: gemm_ladder.errors.EmulatorError: emulator:",
    ),
    "another result": ("p.d[0] = 7;", "", "fails: RuntimeError: the kernel gave [7, 3, 6,"),
}


@pytest.mark.parametrize(("statement", "numba", "said"), TRIALS.values(), ids=TRIALS)
def test_an_emulator_that_does_not_run(
    machine: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    statement: str,
    numba: str,
    said: str,
) -> None:
    """It builds; that it fails when it runs is reported, not raised, without Python's assertions, too."""
    machine.undo()
    machine.setenv("PYTHONOPTIMIZE", "1")
    if numba:
        (tmp_path / "numba").mkdir()
        (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('no LLVM')")
        machine.setenv("PYTHONPATH", str(tmp_path))
    text = doctor._TRIALS["emulator"].replace("; }", f"; {statement} }}", 1)
    machine.setattr(doctor, "_TRIALS", {"emulator": text})
    checks = doctor._trial("emulator")
    assert [(check.name, check.ok) for check in checks] == [("emulator build", True), ("emulator run", False)]
    assert checks[1].found.startswith(said) and not doctor.runs(checks, "emulator")


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really: the tests need the emulator, so it must be found to run; asking must not touch CUDA here."""
    monkeypatch.setenv("GEMM_LADDER_CACHE", str(tmp_path))
    code = """
import sys
from gemm_ladder.build import doctor
status = doctor.main([])
assert not {"torch", "numba"} & set(sys.modules)
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert VERDICTS["emulator"][0] in done.stdout
    assert "a small library builds and loads" in done.stdout
    assert "a small kernel runs, and its result is right" in done.stdout
    assert str(tmp_path) in done.stdout

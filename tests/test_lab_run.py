"""`python -m gemm_ladder lab`: running kernels with arguments that are words, and beginning a rung."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gemm_ladder as gl
import ml_dtypes
import numpy as np
import pytest
from gemm_ladder.arguments import GemmArgs
from gemm_ladder.cli import main
from gemm_ladder.lab import literals, speed, template
from gemm_ladder.lab.operands import normal
from gemm_ladder.lab.tensor_maps import TensorMap

Output = pytest.CaptureFixture[str]

KERNELS = """\
#include <cuda_runtime.h>
#include "ptx.cuh"

__global__ void scale(const float* x, float* out, int n, float factor) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = factor * x[i];
}

__global__ void wild(const float* x, float* out, int n) { out[threadIdx.x + n] = x[threadIdx.x]; }

__global__ void race(int* out) {
    if (threadIdx.x % 32 == 0) atomicExch(out, static_cast<int>(threadIdx.x));
}

// One box, whose first row is SKIPPED.
__global__ void box(const __grid_constant__ TensorMap map, uint8_t* out) {
    __shared__ alignas(128) uint8_t loaded[128];
    __shared__ uint64_t full;
    const uint32_t barrier = static_cast<uint32_t>(__cvta_generic_to_shared(&full));
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(barrier, sizeof loaded);
        const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(loaded));
        ptx::cp_async_bulk_tensor_2d(to, &map, barrier, 0, SKIPPED);
    }
    __syncthreads();
    ptx::mbarrier_wait_parity(barrier, 0);
    out[threadIdx.x] = loaded[threadIdx.x];
}
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "kernels.cu"
    path.write_text(KERNELS)
    return str(path)


def lab_run(source: str, *words: str) -> int:
    return main(["lab", "run", source, "--define", "SKIPPED=8", *words])


SCALE = ("--kernel", "scale", "--grid", "2", "--block", "32", "float32[64]=arange", "float32[64]=nan")


def test_what_a_kernel_wrote(source: str, tmp_path: Path, capsys: Output) -> None:
    saved, events = tmp_path / "after.npz", tmp_path / "events.npy"
    words = ("60", "-2.5", "--print", "--save", str(saved), "--record", str(events))
    assert lab_run(source, *SCALE, *words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("The emulator: ") and "64 steps" in shown
    assert "0: float32[64]=arange           as it was" in shown
    assert "60 of 64 values written; 4 NaN; -147.5 to -0, mean -73.75; begins -0, -2.5, -5" in shown
    assert "[0. 1. 2." not in shown, "x is as it was"
    assert "-145.  -147.5" in shown and f"Written: {saved}" in shown
    with np.load(saved) as after:
        np.testing.assert_array_equal(after["arg1"][:60], -2.5 * np.arange(60))
    assert np.load(events).dtype == gl.ref.emulator.EVENT


def test_a_tensor_map(source: str, tmp_path: Path) -> None:
    """Of an array that is no argument, and of one that is."""
    saved = tmp_path / "after.npz"
    arrays = ("map:uint8[16,16]=arange:8x16", "uint8[128]=0")
    assert lab_run(source, "--kernel", "box", *arrays, "--save", str(saved)) == 0
    with np.load(saved) as after:
        np.testing.assert_array_equal(after["arg1"], np.arange(128, 256))
        np.testing.assert_array_equal(after["arg0"], np.arange(256).reshape(16, 16))
    assert lab_run(source, "--kernel", "box", "map:1:8x16", "uint8[16,16]=7", "--save", str(saved)) == 0
    with np.load(saved) as after:
        assert (after["arg1"] == 7).all()


def test_a_fault(source: str, capsys: Output) -> None:
    words = ("--kernel", "wild", "--block", "32", "float32[32]=normal", "float32[32]=nan", "28")
    assert lab_run(source, *words) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("FAULT (global_out_of_bounds): emulator: block 0, warp 0, lane ")
    assert "outside out of shape 32" in shown and "(kernels.cu:9)" in shown


def test_many_schedules(source: str, capsys: Output) -> None:
    assert lab_run(source, *SCALE, "60", "2.5", "--seeds", "3") == 0
    assert capsys.readouterr().out.startswith("3 schedules: no fault, and the same result each time.")
    assert lab_run(source, "--kernel", "race", "int32[1]=0", "--seeds", "10") == 1
    said = capsys.readouterr().out
    assert re.search(
        r"of 10 schedules give another result than the first, such as seed \d: one value of out \(", said
    )


def test_a_rungs_kernel_without_its_launcher() -> None:
    """A rung's file has a launcher, which the lab does not call."""
    operands = normal(np.random.default_rng(0), 8, 32, 128)
    arrays = operands.a, np.ascontiguousarray(operands.sfa.T), operands.b, operands.sfb
    out = np.zeros((8, 32), np.uint16)
    pointers = [array.ctypes.data for array in (*arrays, out)]
    args = GemmArgs(*pointers, m=8, n=32, k=128, sfa_stride=8)
    gl.lab.run(gl.rungs["s1_naive"].path, args, block=256)
    np.testing.assert_array_equal(out, operands.expected_bits("s1_naive"))


def refusal(capsys: Output, *words: str) -> str:
    """What the command says when it refuses: one line on stderr, and exit status 2."""
    assert main(["lab", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("gemm_ladder: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["float33[2]=0"], "'float33[2]=0' has the type 'float33'; one of float64, float32,"),
        (["float32[0]=0"], "has the sizes [0]; positive numbers are needed"),
        (["float32[2,x]=0"], "has the sizes [2,x]; positive numbers are needed"),
        (["float32[99999,999999]=0"], "has more than 1.7e+10 bytes; a smaller array is needed"),
        (["int32[2]=1.5"], "is filled with '1.5'; an integer, or one of normal,"),
        (["int8[2]=200"], "is filled with 200; -128 to 127 is needed"),
        (["int32[2]=nan"], "is filled with nan; a floating-point type is needed"),
        (["int32[4]=1,2,3"], "has 3 numbers for 4 elements; as many or one are needed"),
        (["float32[2]=@none.npy"], "none.npy cannot be read as a .npy file"),
        (["64x64"], "'64x64' is not an argument; a number, null, an array such as"),
        (["map:0:64"], "'map:0:64' is not a tensor map; map:ARRAY:ROWSxCOLUMNS"),
        (["map:0:8x16:128B", "1"], "is of argument 0, which is no array"),
        (["map:float32[16]=0:8x16"], "box is (8, 16); a size for each of the array's 1 dimensions is needed"),
        (["map:float32[16,16]=0:8x16:100B"], "swizzle is 100; 0, 32, 64 or 128 bytes are needed"),
        (["--grid", "4,x"], "--grid is '4,x'; a positive number, or up to three, are needed"),
        (["--save", "none/x.npz"], "--save is none/x.npz; a .npz file in a folder that exists is needed"),
        (["--seeds", "0"], "--seeds is 0; a positive number of schedules is needed"),
        (["--seeds", "2", "--record", "x.npy"], "--seeds is 2; one launch is recorded"),
        (["--seeds", "2", "--device", "cuda"], "--seeds is for the emulator; --device cpu is needed"),
        (["1"], "The source has the kernels scale, wild, race, box"),
    ],
)
def test_refusals(source: str, capsys: Output, words: list[str], said: str) -> None:
    assert said in refusal(capsys, "run", source, *words)


def test_arguments_that_do_not_suit_the_kernel(source: str, capsys: Output) -> None:
    said = refusal(capsys, "run", source, "--define", "SKIPPED=8", *SCALE, "60")
    assert "3 arguments are given; scale has 4 parameters: x, out, n, factor." in said


def test_an_unknown_option(source: str, capsys: Output) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["lab", "run", source, "--kernel", "scale", "1", "--bogus"])
    assert exit.value.code == 2 and "unrecognized arguments: --bogus" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["lab", "judge", source, "1"])


@pytest.mark.parametrize(
    ("word", "dtype", "expected"),
    [
        ("int32[4]=3,1,2,-7", "i4", [3, 1, 2, -7]),
        ("uint8[2,2]=0xff", "u1", [[255, 255], [255, 255]]),
        ("bfloat16[2]=1.5", ml_dtypes.bfloat16, [1.5, 1.5]),
        ("e4m3[3]=arange", ml_dtypes.float8_e4m3fn, [0, 1, 2]),
        ("float16[2]=inf,-0.5", "f2", [np.inf, -0.5]),
    ],
)
def test_arrays(word: str, dtype: str, expected: list[float]) -> None:
    given = literals.parse([word])
    (array,) = given.arrays.values()
    assert array.dtype == np.dtype(dtype) and array.astype(float).tolist() == expected
    assert given.values[0] is array
    given = literals.parse([word], as_bits=True)
    (array,) = given.arrays.values()
    assert given.values[0].dtype.kind == "u" and np.shares_memory(given.values[0], array)


@pytest.mark.parametrize("name", literals.DTYPES)
def test_random_arrays(name: str) -> None:
    """Finite, not all the same, the same for the same seed."""
    first, again, other = (
        next(iter(literals.parse([f"{name}[8,16]=normal"], seed).arrays.values())) for seed in (1, 1, 2)
    )
    assert first.shape == (8, 16) and np.isfinite(first.astype(float)).all()
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert len(np.unique(first)) > 1


def test_other_arguments(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6, dtype=np.uint16).reshape(2, 3))
    words = ["-3", "1e-3", "null", f"bfloat16[2,3]=@{tmp_path / 'x.npy'}", "map:3:2x3:32B", "0x10"]
    given = literals.parse(words)
    assert given.values[:3] == [-3, 1e-3, None] and given.values[5] == 16
    assert (given.values[3].view(np.uint16) == np.arange(6).reshape(2, 3)).all(), "bits"
    map_ = given.values[4]
    assert isinstance(map_, TensorMap) and (map_.box, map_.swizzle) == ((2, 3), 32)
    assert np.shares_memory(map_.array, given.values[3])


# ---------------------------------------------------------------------------------------------------- lab new


def test_a_new_rung(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "my_rung.cu"
    assert main(["lab", "new", str(path), "--from", "s4_tma"]) == 0
    assert f"Next: python -m gemm_ladder lab judge {path}" in capsys.readouterr().out
    text = path.read_text()
    assert text.startswith(
        "// my_rung: TODO: what it adds to s4_tma (the copy engine, and a ring of mbarriers)"
    )
    assert "python -m gemm_ladder lab judge my_rung.cu" in text and "compare --rungs" not in text
    assert "    my_rung(const __grid_constant__" in text and "launch(my_rung," in text
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "exists; a name that does not is needed" in refusal(capsys, "new", str(path), "--from", "s4_tma")
    assert path.read_text() == text


@pytest.mark.parametrize("rung", template.copied())
def test_every_copy_has_the_rungs_code(rung: str) -> None:
    """Nothing but the comment and the names is another."""
    text = template.adapted(gl.rungs[rung].source, rung, Path("mine.cu"))
    code = [line for line in text.splitlines() if not line.startswith("//")]
    of_rung = [line for line in gl.rungs[rung].source.splitlines() if not line.startswith("//")]
    assert [line.strip() for line in code] == [line.strip().replace(rung, "mine") for line in of_rung]
    assert "TODO" in text and "Rung " not in text.split("#include")[0]


@pytest.mark.parametrize("name", ["mine", "my_rung_with_a_long_name"])
@pytest.mark.parametrize("rung", ["s4_tma", "s7_persistent"])
def test_a_copy_is_laid_out_for_its_name(rung: str, name: str) -> None:
    """Parameters stand below each other, whatever the length of the name; no line is too long."""
    lines = template.adapted(gl.rungs[rung].source, rung, Path(f"{name}.cu")).splitlines()
    assert max(map(len, lines)) <= 120
    first = next(i for i, line in enumerate(lines) if f" {name}(const" in line)
    assert lines[first + 1].index("const") == lines[first].index("const")
    for launched in [i for i, line in enumerate(lines) if f"launch({name}," in line]:
        indented = len(lines[launched + 1]) - len(lines[launched + 1].lstrip())
        assert indented == lines[launched].index(name)


@pytest.mark.parametrize(
    ("path", "rung", "said"),
    [
        ("my_rung.txt", "s4_tma", "a name such as my_rung.cu is needed"),
        ("my-rung.cu", "s4_tma", "a name such as my_rung.cu is needed"),
        ("x.cu", "s9_production", "is not one .cu file of its own; one of s1_naive, s2_tiled"),
        ("x.cu", "s9", "'s9' is not a rung's name"),
        ("none/x.cu", "s4_tma", "cannot be written (No such file or directory)"),
    ],
)
def test_new_refuses(tmp_path: Path, capsys: Output, path: str, rung: str, said: str) -> None:
    assert said in refusal(capsys, "new", str(tmp_path / path), "--from", rung)
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------- the command itself


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gemm_ladder", "lab", *words], capture_output=True, text=True
    )


def test_the_command(tmp_path: Path, source: str) -> None:
    """From a new rung to a verdict, right and wrong, by the command."""
    path = tmp_path / "mine.cu"
    assert command("new", str(path), "--from", "s3_wgmma").returncode == 0
    judge = ("judge", str(path), "--device", "cpu", "--seconds", "3", "--cases", "one_tile,two_k_blocks")
    right = command(*judge)
    assert right.returncode == 0 and right.stdout.startswith("RIGHT: mine: its product is"), right.stderr
    path.write_text(path.read_text().replace("k != 0);", "k != 0 || block != 0);"))
    wrong = command(*judge)
    assert wrong.returncode == 1 and wrong.stdout.startswith("WRONG: mine at 64 x 128 x 256"), wrong.stdout
    refused = command("judge", source)
    assert refused.returncode == 2 and "has no gemm_ladder_launch" in refused.stderr


# -------------------------------------------------------------------------------------------------- lab speed


def test_speed(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr(speed, "PRODUCTS", (("s3_wgmma", 64, 128, 128), ("s4_tma", 64, 128, 128)))
    assert main(["lab", "speed", "--runs", "2", "--threads", "1"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{speed.cpu_name()}, 1 threads; seconds for 10^9 multiply-adds:"
    row = re.compile(r"  (\w+) +64 x 128 x 128 +(\S+) s of CPU time +(\S+) s on the wall")
    found = [row.fullmatch(line) for line in lines]
    assert all(found) and [one[1] for one in found] == ["s3_wgmma", "s4_tma"]
    assert all(float(one[2]) > 0 and float(one[3]) > 0 for one in found)
    assert "runs is 0; a positive number is needed" in refusal(capsys, "speed", "--runs", "0")

"""The judge: the rungs are right, and of a rung with a mistake in it the judge says what is wrong."""

from __future__ import annotations

import ctypes
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from gemm_ladder import launch
from gemm_ladder.arguments import GemmArgs
from gemm_ladder.lab import judging_on_gpu
from gemm_ladder.lab.agreement import differing, out_of_bounds
from gemm_ladder.lab.cases import CASES, GPU_CASES, UNEVEN_CASES, Case
from gemm_ladder.lab.given import Given
from gemm_ladder.lab.surroundings import CANARY, MARGIN, surround, trespass
from gemm_ladder.lab.verdicts import Bits, Verdict
from gemm_ladder.measure import session
from gemm_ladder.ref import emulator
from planted_bugs import BUGS, WIDE, Bug, code

ON_CUDA_CORES = ("s1_naive", "s2_tiled")
ON_TENSOR_CORES = ("s3_wgmma", "s4_tma", "s5_tma_multicast", "s6_warp_specialized", "s7_persistent")
FEW = ("one_tile", "two_k_blocks", "one_row", "5_k_blocks", "narrow", "ragged_65", "not_finite")


# ------------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize("rung", ON_TENSOR_CORES)
def test_a_rung_is_right(rung: str) -> None:
    verdict = gl.judge(gl.rungs[rung].path, seconds=2, every_case=True, device="cpu", cases=FEW)
    assert verdict.right and verdict.arithmetic == "tensor core", verdict
    assert str(verdict).startswith(f"RIGHT: {rung}: its product is the tensor cores' bit for bit, in ")
    assert len(verdict.judged) == len(FEW) and not verdict.refused and not verdict.wrong


@pytest.mark.parametrize(("rung", "uneven"), [("s1_naive", ["uneven_tiny"]), ("s2_tiled", [])])
def test_the_first_rungs_are_right_with_other_bits(rung: str, uneven: list[str]) -> None:
    """They add in FP32: not bit for bit the tensor cores' product, but within the bounds."""
    few = ("one_row", "5_k_blocks", "narrow", "subnormal", *uneven)
    verdict = gl.judge(gl.rungs[rung].path, seconds=3, every_case=True, device="cpu", cases=few)
    assert verdict.right and verdict.arithmetic == "CUDA cores", verdict
    assert "within the rungs' error bounds, not the tensor cores' bit for bit" in verdict.sentence
    assert "FP32 additions in the order of k" in verdict.sentence


def test_every_case_runs_before_one_runs_again() -> None:
    class Enough(Exception):
        pass

    ran: list[list[str]] = []

    def tick(text: str) -> None:
        if ", seed " in text:
            ran.append(text.split(", seed "))
        if len(ran) == 2 * len(FEW):
            raise Enough

    with pytest.raises(Enough):
        gl.judge(gl.rungs["s3_wgmma"].path, seconds=600, device="cpu", cases=FEW, tick=tick)
    assert [name for name, _ in ran] == 2 * list(FEW)
    assert [int(seed) for _, seed in ran] == list(range(2 * len(FEW)))


def test_every_case_runs_in_too_little_time_if_asked_to() -> None:
    path = gl.rungs["s4_tma"].path
    verdict = gl.judge(path, seconds=1e-6, device="cpu", cases=FEW)
    assert verdict.right and len(verdict.judged) == 1 and len(verdict.unreached) == len(FEW) - 1
    verdict = gl.judge(path, seconds=1e-6, every_case=True, device="cpu", cases=FEW)
    assert verdict.right and len(verdict.judged) == verdict.runs == len(FEW) and not verdict.unreached


@pytest.mark.slow
@pytest.mark.parametrize("rung", ON_TENSOR_CORES)
def test_a_rung_is_right_in_every_case(rung: str) -> None:
    """Each on two schedules."""
    names = [case.name for case in CASES]
    verdict = gl.judge(gl.rungs[rung].path, seconds=1e-6, every_case=True, device="cpu", cases=2 * names)
    assert verdict.right and verdict.arithmetic == "tensor core", verdict
    assert verdict.runs == 2 * len(CASES) and not verdict.unreached


@pytest.mark.slow
@pytest.mark.parametrize("rung", ON_CUDA_CORES)
def test_a_rung_is_right_in_the_cases_that_there_is_time_for(rung: str) -> None:
    """All would take minutes on the emulator, which follows every access of a CUDA core."""
    verdict = gl.judge(gl.rungs[rung].path, seconds=40, device="cpu")
    assert verdict.right, verdict


# ---------------------------------------------------------------------- what is wrong, by mistakes in rung s4

STORED = "ptx::cvt_rn_bf16x2_f32(total[i + 1], total[i])"
LOAD_A = "&map_a, full, block * kTileK, tile_m)"
LOAD_B = "&map_b, full, block * kTileK, tile_n)"
LOAD_SCALES = "&map_sfa, full, tile_m, block)"
SCALE0, SCALE1 = "row0 * sizeof(float)) * sfb[block]", "row1 * sizeof(float)) * sfb[block]"
# By what the judge has to say of it, a mistake: texts of the rung, and what stands in their places.
MISTAKES: dict[str, dict[str, str]] = {
    r"\(all 64 rows, columns 120 to 127\) were never written": {"column < p.n)": "column < p.n - 8)"},
    r"of D \(row 64, .*\) are zeros": {STORED: f"tile_m ? 0u : {STORED}"},
    "are rounded to BF16 toward zero": {
        STORED: "(__float_as_uint(total[i + 1]) & 0xFFFF0000u) | __float_as_uint(total[i]) >> 16"
    },
    "are 2 times the right ones": {STORED: "ptx::cvt_rn_bf16x2_f32(2 * total[i + 1], 2 * total[i])"},
    "of D 64 rows above: another tile's": {
        LOAD_A: LOAD_A.replace("tile_m", "0"),
        LOAD_SCALES: LOAD_SCALES.replace("tile_m", "0"),
    },
    r"of other rows \(index XOR 8\)": {"(i / 2 % 2 ? row1 : row0)": "(i / 2 % 2 ? row0 : row1)"},
    r"of other columns \(index XOR 8\)": {
        "accumulator_column(threadIdx.x, i);": "(accumulator_column(threadIdx.x, i) ^ 8);"
    },
    "lack K block 0": {"fmaf(partial[i],": "fmaf(block || blocks == 1 ? partial[i] : 0.0f,"},
    "have K block 1 twice": {"fmaf(partial[i],": "fmaf((1 + (block == 1)) * partial[i],"},
    "B is that of 1 K block before: a stale or early stage": {
        LOAD_B: LOAD_B.replace("block *", "(block ? block - 1 : 0) *")
    },
    r"have A's scale of another row \(index XOR 8\)": {"? scale1 : scale0": "? scale0 : scale1"},
    "lack B's scales": {scale: scale.replace(" * sfb[block]", "") for scale in (SCALE0, SCALE1)},
    "have B's scale of K block 0 in every K block": {
        scale: scale.replace("[block]", "[0]") for scale in (SCALE0, SCALE1)
    },
    "as if B's descriptor is not advanced": {"advance(desc_b, k)": "desc_b"},
    "each K block began with the sum of those before": {"k != 0)": "k != 0 || block != 0)"},
    "as if B is swizzled by": {"kTileN, kTileK, Swizzle::k128B": "kTileN, kTileK, Swizzle::kNone"},
}
RACE = "has other bits each time"
REFUSES = "refuses"
VARIANTS = {
    **MISTAKES,
    RACE: {"fmaf(partial[i],": "fmaf(partial[i] * (1 + (clock64() & 1) * 0x1p-10f),"},
    REFUSES: {
        "const GemmArgs& p = *args;": "const GemmArgs& p = *args;\n"
        'if (p.n % 128) return "n must be a multiple of 128";'
    },
    "writes outside": {"if (row < p.m && column < p.n)": "if (column < p.n)"},
}
NAMES = list(VARIANTS)


def planted_source() -> str:
    """Rung s4 with each of the mistakes in it, all in one library, which `planted` chooses from."""
    source = gl.rungs["s4_tma"].source
    variants, calls = [], []
    for index, replaced in enumerate(VARIANTS.values()):
        body = source.replace("gemm_ladder_launch", f"launch_{index}")
        for old, new in replaced.items():
            assert old in body, f"s4_tma has changed: {old}"
            body = body.replace(old, new)
        body = "\n".join(line for line in body.splitlines() if not line.startswith("#include"))
        variants.append(f"namespace variant_{index} {{\n{body}\n}}")
        calls.append(f"if (planted == {index}) return variant_{index}::launch_{index}(args);")
    includes = [line for line in source.splitlines() if line.startswith("#include")]
    launcher = (
        'extern "C" int planted = 0;\nextern "C" const char* gemm_ladder_launch(const GemmArgs* args) {'
    )
    return "\n".join(
        [
            "#include <cuda_runtime.h>",
            *includes,
            *variants,
            launcher,
            *calls,
            'return "no such variant";\n}\n',
        ]
    )


@pytest.fixture(scope="module")
def planted() -> Callable[..., Verdict]:
    """judges a variant, by its name in VARIANTS"""
    source = planted_source()
    library = Given.of(source, None, ()).build("emulator").lib

    def judge(name: str, **options: Any) -> Verdict:
        ctypes.c_int.in_dll(library, "planted").value = NAMES.index(name)
        return gl.judge(source, device="cpu", **{"seconds": 3, "every_case": True, **options})

    return judge


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_named(planted: Callable[..., Verdict], said: str) -> None:
    """In the first sentence; with the place, some values, and how to see it again, all in one screen."""
    verdict = planted(said)
    assert not verdict.right and re.search(said, verdict.sentence), verdict
    assert verdict.sentence.startswith("WRONG: kernel at ")
    shown = str(verdict).splitlines()
    assert len(shown) <= 20
    assert any(re.search(r"D\[\d+, \d+\] is .+, and should be ", line) for line in shown)
    assert any(" of 64 x 128" in line or "each 64 x 128" in line for line in shown)
    wrong = verdict.wrong
    assert wrong and f"--cases {wrong.case.name} --first-seed {wrong.seed}" in shown[-1]
    assert wrong.mask is not None and wrong.mask.shape == (wrong.case.m, wrong.case.n)


def test_bits_that_depend_on_the_schedule(planted: Callable[..., Verdict]) -> None:
    """All results are within the bounds of rounding, but not the same."""
    verdict = planted(RACE, cases=["one_tile"])
    assert not verdict.right and "the result depends on the schedule" in verdict.sentence, verdict


def test_a_refused_shape_is_not_wrong(planted: Callable[..., Verdict]) -> None:
    verdict = planted(REFUSES, cases=["one_tile", "narrow", "ragged_65"], seconds=2)
    assert verdict.right and [case.name for case in verdict.judged] == ["one_tile"]
    assert verdict.refused == dict.fromkeys(["narrow", "ragged_65"], "n must be a multiple of 128")
    assert "refused   2 shapes, such as narrow: n must be a multiple of 128" in str(verdict)
    verdict = planted(REFUSES, cases=["narrow"])
    assert (
        not verdict.right and verdict.sentence == "NOT JUDGED: kernel refuses every shape that it was given."
    )


def test_a_write_outside_is_a_fault(planted: Callable[..., Verdict]) -> None:
    verdict = planted("writes outside", cases=["one_row"])
    assert verdict.wrong and verdict.wrong.fault and verdict.wrong.fault.what == "global_out_of_bounds"
    assert re.search(
        r"WRONG: kernel at 1 x 128 x 128 \(one_row\), seed 0: .*outside D of shape 1 x 128", str(verdict)
    )


# --------------------------------------------------------- what is wrong, by the bugs of test_planted_bugs.py


def bug(kernel: str, wrong: str) -> Bug:
    return next(bug for bug in BUGS if (bug.kernel, bug.wrong) == (kernel, wrong))


@pytest.mark.parametrize(
    ("planted_bug", "said"),
    [
        (bug("s3_wgmma", "the stores are not swizzled"), "as if A and B are swizzled by the writer alone"),
        (
            bug("s3_wgmma", "the descriptor's stride byte offset is half of what it should be"),
            "of other columns: column 8 has those of column 4",
        ),
        (
            bug("s4_tma", "the producer does not wait for an empty stage"),
            r"\(5_k_blocks\)|\(6_k_blocks\)",  # once the ring of four stages comes round
        ),
        (
            bug(WIDE, "all columns of a tile are multiplied by its first scale of B"),
            r"columns 128 to 191\) have B's scale of the previous 128 columns",
        ),
    ],
    ids=lambda value: value.wrong.replace(" ", "_") if isinstance(value, Bug) else "",
)
@pytest.mark.slow
def test_a_planted_bug(planted_bug: Bug, said: str) -> None:
    source = planted_bug.plant(code(gl.rungs[planted_bug.rung].source))
    verdict = gl.judge(source, device="cpu", seconds=20, every_case=True)
    assert not verdict.right and re.search(said, verdict.sentence), verdict


# --------------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": "__global__ void f() {}\n"}, "The source has no gemm_ladder_launch"),
        ({"source": "none.cu"}, "none.cu does not exist"),
        ({"n_multiple": 0}, "n_multiple is 0; a positive number is needed"),
        ({"k_multiple": 1000}, "No case has an n that is a multiple of 8 and a k that is one of 1000"),
        ({"seconds": 0}, "seconds is 0; a positive number is needed"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"cases": ["all"]}, "'all' is not a case; one of one_tile, two_k_blocks"),
        ({"first_seed": -1}, "first_seed is -1"),
    ],
)
def test_refusals(options: dict[str, Any], said: str) -> None:
    with pytest.raises(gl.GemmLadderError) as refusal:
        gl.judge(**{"source": gl.rungs["s3_wgmma"].path, **options})
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_the_cases() -> None:
    """Names and shapes are distinct, cheap ones come first, rings of every length up to 9 come round."""
    everything = (*CASES, *UNEVEN_CASES, *GPU_CASES)
    assert len({case.name for case in everything}) == len(everything)
    assert len({case.reaches for case in everything}) == len(everything)
    costs = [case.m * case.n * case.k for case in CASES]
    assert sum(costs[: len(costs) // 2]) < sum(costs) / 20
    assert {case.k // 128 for case in CASES} >= {*range(1, 11), 17}
    assert all(case.n % 8 == 0 and case.k % 128 == 0 for case in (*CASES, *GPU_CASES))


CHEAP = [case for case in CASES if case.m * case.n * case.k < 1 << 23 and case.name != "subnormal"]


@pytest.mark.parametrize("case", CHEAP, ids=lambda case: case.name)
def test_bounds(case: Case) -> None:
    """FP32's and exactly rounded results are within the bounds, those of a wrong scale or a zero are not."""
    for arithmetic in ("tensor core", "CUDA cores", "float64"):
        assert not out_of_bounds(case, case.operands.bits(arithmetic)).any(), arithmetic
    wrong = case.operands.bits("tensor core").copy()
    exact = np.abs(np.nan_to_num(case.operands.exact(), posinf=0, neginf=0))
    exact[exact < 1e-30] = 0  # what is subnormal may be flushed to zero
    row, column = np.unravel_index(np.argmax(np.nan_to_num(exact / case.operands.magnitude())), exact.shape)
    wrong[row, column] ^= 0x0040  # half as much more, or a third less
    wrong[0, 0] = CANARY
    found = out_of_bounds(case, wrong)
    assert found[0, 0] and found[row, column] and found.sum() == 2
    assert differing(wrong, case.operands.bits("tensor core")).sum() == 2


def test_bits_of_every_arithmetic() -> None:
    """The judge keeps the arithmetics whose bits all results have had so far."""
    bits, case = Bits(), next(case for case in CASES if case.name == "two_k_blocks")
    assert bits.wrong(case, 0, case.operands.bits("CUDA cores")) is None
    assert bits.models[0] == "CUDA cores" and bits.apart is None
    exact = next(case for case in CASES if case.exact)
    assert bits.wrong(exact, 1, exact.operands.bits("float64")) is None
    assert bits.models[0] == "CUDA cores"


def test_surroundings() -> None:
    case = CASES[2]
    placed = surround(case.operands)
    assert trespass(placed.around) is None and placed.out.shape == (case.m, case.n)
    assert (placed.a.array == case.operands.a).all() and placed.sfa.array.shape == (1, 4)
    placed.around[MARGIN - 1, 3] = 0
    assert trespass(placed.around) == (
        "something was written outside D, above its first row: 1 values, one of them where D[-1, 3] would be"
    )


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "find_gpu", lambda: (None, "no CUDA GPU that torch can use"))
    with pytest.raises(gl.GemmLadderError, match="a Hopper GPU is needed to judge a kernel there"):
        gl.judge(gl.rungs["s3_wgmma"].path, device="cuda")


@pytest.mark.usefixtures("fake_gpu")
def test_on_a_pretended_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator in the GPU's place: every case runs there several times, then the kernel is timed."""
    build = Given.build
    monkeypatch.setattr(Given, "build", lambda given, target: build(given, "emulator"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    stream = types.SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)

    def launcher(library: ctypes.CDLL) -> Callable[[int], bytes | None]:
        def start(address: int) -> bytes | None:
            said = emulator.launch(library, GemmArgs.from_address(address))
            return said.encode() if said else None

        return start

    monkeypatch.setattr(launch, "launcher", launcher)
    monkeypatch.setattr(judging_on_gpu, "TIMED", ((64, 128, 128),))
    monkeypatch.setattr(judging_on_gpu, "rungs", {"s3_wgmma": gl.rungs["s3_wgmma"]})
    path = tmp_path / "mine.cu"
    path.write_text(gl.rungs["s4_tma"].source)
    verdict = gl.judge(path, device="cuda", cases=FEW)
    assert verdict.right and verdict.runs == judging_on_gpu.REPEATS * len(FEW), verdict
    assert "in 7 shapes and 21 runs on a GPU" in verdict.sentence
    assert "64 x 128 x 128: mine (yours) 100 us, s3_wgmma 100 us" in str(verdict)

    path.write_text(path.read_text().replace("advance(desc_b, k)", "desc_b"))
    verdict = gl.judge(path, device="cuda", cases=FEW)
    assert not verdict.right and not verdict.times
    assert verdict.sentence.startswith("WRONG: mine on the GPU at 64 x 128 x 128 (one_tile): ")

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    stream.synchronize = lost
    verdict = gl.judge(path, device="cuda", cases=FEW)
    assert "CUDA reports: CUDA error: an illegal memory access was encountered" in verdict.sentence


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    """Right there too, and timed beside the rungs."""
    path = tmp_path / "mine.cu"
    path.write_text(gl.rungs["s5_tma_multicast"].source)
    verdict = gl.judge(path, seconds=1, cases=FEW)
    assert verdict.right and {"mine (yours)", "s4_tma"} <= verdict.times.keys(), verdict
    for m, n, k in judging_on_gpu.TIMED:
        assert f"{m} x {n} x {k}: " in str(verdict)

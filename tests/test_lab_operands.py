"""The judge with BF16 operands, and the bits of a product whose K is split."""

from __future__ import annotations

import ctypes
import re
import types
from collections.abc import Callable
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from gemm_ladder import cli, launch
from gemm_ladder.arguments import GemmArgs
from gemm_ladder.lab import bf16, command, judging_on_gpu
from gemm_ladder.lab.agreement import differing, out_of_bounds
from gemm_ladder.lab.cases import CASES, GPU_CASES, Case
from gemm_ladder.lab.given import Given
from gemm_ladder.lab.operands import PARTS
from gemm_ladder.lab.surroundings import surround
from gemm_ladder.lab.verdicts import Bits, Verdict
from gemm_ladder.ref import emulator, gemm, tensor_core
from repository import REPOSITORY

SOLUTIONS = REPOSITORY / "lessons" / "solutions"
BF16 = SOLUTIONS / "own_rung_bf16.cu"
SPLIT_K = SOLUTIONS / "own_rung_split_k.cu"
BF16_CASES = [bf16.of_case(case) for case in CASES]
CHEAP = [case for case in BF16_CASES if case.m * case.n * case.k < 1 << 22]


def changed(source: Path, old: str, new: str) -> str:
    text = source.read_text()
    assert text.count(old) == 1, old
    return text.replace(old, new)


def test_every_case_has_its_bf16_twin() -> None:
    """As many K blocks, and other numbers; what it reaches is said without scales where there are none."""
    for case, twin in zip((*CASES, *GPU_CASES), map(bf16.of_case, (*CASES, *GPU_CASES)), strict=True):
        assert (twin.name, twin.m, twin.n, twin.k * 2) == (case.name, case.m, case.n, case.k)
        assert twin.k % bf16.BLOCK == 0
        assert not re.search("E4M3|scale", twin.reaches)
    for case in CHEAP:
        operands = case.operands
        assert operands.a.dtype == operands.b.dtype == np.uint16 and operands.shape == (
            case.m,
            case.n,
            case.k,
        )
        placed = surround(operands)
        assert [*placed.inputs] == ["a", "b"] and placed.sfa is placed.sfb is None
        assert np.isnan(operands.decode(placed.a.flat[:1])).all(), "poison is a NaN"


@pytest.mark.parametrize("case", CHEAP, ids=lambda case: case.name)
def test_bounds(case: Case) -> None:
    """Right results are within the bounds; one that is wrong by a BF16 digit is not."""
    operands = case.operands
    for arithmetic in operands.arithmetics:
        assert not out_of_bounds(case, operands.bits(arithmetic)).any(), arithmetic
    exact = np.abs(np.nan_to_num(operands.exact(), posinf=0, neginf=0))
    exact[exact < 1e-30] = 0  # what is subnormal may be flushed to zero
    if not exact.any():
        return
    row, column = np.unravel_index(np.argmax(np.nan_to_num(exact / operands.magnitude())), exact.shape)
    wrong = operands.bits("tensor core").copy()
    wrong[row, column] ^= 0x0004
    assert out_of_bounds(case, wrong)[row, column]


def test_the_product_of_bf16_is_the_instructions() -> None:
    """Against float64, to the last of FP32's digits that an instruction keeps, and exact where it can be."""
    for case in CHEAP:
        if case.exact:
            assert not differing(case.operands.bits("tensor core"), case.operands.bits("float64")).any()
    operands = next(case for case in CHEAP if case.name == "17_k_blocks").operands
    found = operands.sum_of(0, 17).astype(np.float64)
    assert (np.abs(found - operands.exact()) <= operands.lost * operands.magnitude()).all()


def test_parts_of_k() -> None:
    """Part i of S has the K blocks from i B // S on; sums are added in order, in FP32."""
    operands = next(case for case in CASES if case.name == "many_tiles").operands
    sums = []
    for first, end in ((0, 1), (1, 3), (3, 5)):
        k, blocks = np.s_[:, 128 * first : 128 * end], np.s_[:, first:end]
        sums.append(
            tensor_core.gemm_f32(operands.a[k], operands.sfa[blocks], operands.b[k], operands.sfb[blocks])
        )
    expected = gemm.to_bf16((sums[0] + sums[1]) + sums[2]).view(np.uint16)
    assert (operands.bits("K in 3 parts") == expected).all()
    assert differing(expected, operands.bits("tensor core")).any()
    assert (operands.bits("K in 8 parts") != operands.bits("K in 2 parts")).any()
    one = next(case for case in CASES if case.name == "one_tile").operands
    assert all((one.bits(arithmetic) == one.bits("tensor core")).all() for arithmetic in PARTS)


def test_a_kernel_that_splits_k_is_recognised() -> None:
    cases = ["many_tiles", "one_tile", "ragged_127"]
    verdict = gl.judge(SPLIT_K, device="cpu", seconds=3, every_case=True, cases=cases)
    assert verdict.right and verdict.arithmetic == "K in 2 parts", verdict
    assert "bit for bit, with K in 2 parts whose sums are added in order, in 3 shapes" in verdict.sentence
    other = changed(SPLIT_K, "rank * all / kCluster,", "rank * (all - all / kCluster),")
    other = other.replace("(rank + 1) * all / kCluster - first", "rank ? all - first : all - all / kCluster")
    verdict = gl.judge(other, device="cpu", seconds=3, every_case=True, cases=cases)
    last = "K in 2 parts, the last the shortest"  # the first part has three of five K blocks
    assert verdict.right and verdict.arithmetic == last, verdict
    assert f"bit for bit, with {last}, whose sums are added in order, in 3 shapes" in verdict.sentence


def test_a_rounding_more_for_each_k_block_is_no_split() -> None:
    """Of up to 8 K blocks those are the bits of 8 parts; where there are more and they cancel, of nothing."""
    more = "fmaf(partial[i] * (i / 2 % 2 ? scale1 : scale0), 1.0f, total[i])"
    source = changed(gl.rungs["s4_tma"].path, "fmaf(partial[i], i / 2 % 2 ? scale1 : scale0, total[i])", more)
    verdict = gl.judge(source, device="cpu", seconds=2, every_case=True, cases=["many_tiles", "17_k_blocks"])
    assert verdict.right and verdict.arithmetic is None, verdict
    assert verdict.apart is not None and verdict.apart.name == "17_k_blocks" and verdict.until in PARTS


def test_bits_of_no_known_addition_name_the_case_that_shows_it() -> None:
    """One K block, and then all others: of two K blocks that is K in 2 parts, of five it is nothing known."""
    bits, verdict = Bits(), Verdict("mine", "cpu")
    for name in ("two_k_blocks", "ragged_63", "many_tiles"):
        case = next(case for case in CASES if case.name == name)
        sums = case.operands.sum_of(0, 1), case.operands.sum_of(1, case.k // 128)
        assert bits.wrong(case, 0, tensor_core.bf16_bits(sums[0] + sums[1])) is None
        verdict.judged.append(case)
    verdict.apart, verdict.until = bits.apart, bits.until
    assert not bits.models and bits.apart is not None and bits.until == "K in 2 parts"
    said = str(verdict).splitlines()[-1]
    assert said.startswith("  apart     its bits are no known addition's from 200 x 520 x 640 (many_tiles")
    assert said.endswith("before, they are those of K in 2 parts whose sums are added in order")


def test_the_ways_to_split_k() -> None:
    assert PARTS["K in 2 parts"].ends(5) == [0, 2, 5]
    assert PARTS["K in 2 parts, the last the shortest"].ends(5) == [0, 3, 5]
    assert PARTS["K in 4 parts, the last the shortest"].ends(6) == [0, 2, 4, 6, 6]
    assert all(
        split.ends(8 * 3) == PARTS[name.partition(",")[0]].ends(24)
        for name, split in PARTS.items()
        if split.parts != 3
    )


@pytest.mark.parametrize(
    ("old", "new", "case", "said"),
    [
        ("advance(desc_b, byte)", "desc_b", "two_k_blocks", "as if B's descriptor is not advanced"),
        ("block > 0 || byte > 0", "byte > 0", "two_k_blocks", "lack K block 0"),
        (
            "byte < kSwizzleRow;",
            "byte < kSwizzleRow - 32;",
            "two_k_blocks",
            "lack K 48 to 63 of each K block",
        ),
        (
            "kTileN, kTileK, Swizzle::k128B",
            "kTileN, kTileK, Swizzle::kNone",
            "two_k_blocks",
            "as if B is swizzled",
        ),
        ("ptx::wgmma_wait_group<1>();", "", "5_k_blocks", "released_too_early"),
        ("ptx::wgmma_wait_group<0>();", "", "one_tile", "accumulator_read|unfinished_wgmma"),
        ("row < p.m && column < p.n", "column < p.n", "ragged_65", "global_out_of_bounds"),
    ],
)
def test_mistakes_with_bf16_are_named(old: str, new: str, case: str, said: str) -> None:
    verdict = gl.judge(changed(BF16, old, new), operands="bf16", device="cpu", seconds=3, cases=[case])
    assert not verdict.right and re.search(said, str(verdict)), verdict
    assert "--operands bf16" in str(verdict).splitlines()[-1]


def test_tiles_of_96_columns_with_one_scale() -> None:
    source = changed(SOLUTIONS / "own_rung_96_columns.cu", "/ kScaleN * blocks;", "/ kTileN * blocks;")
    verdict = gl.judge(source, device="cpu", seconds=3, cases=["ragged_129"])
    assert re.search(r"columns 96 to 127 .*B's scale of the next 128 columns", verdict.sentence), verdict


def test_an_fp8_kernel_has_no_scales_there() -> None:
    verdict = gl.judge(gl.rungs["s4_tma"].path, operands="bf16", device="cpu", seconds=3, cases=["one_tile"])
    assert not verdict.right, verdict


def test_refusals() -> None:
    with pytest.raises(gl.GemmLadderError, match='operands is \'int8\'; "fp8" or "bf16" is needed'):
        gl.judge(BF16, operands="int8")  # type: ignore[arg-type]
    with pytest.raises(gl.GemmLadderError, match="'64x128' is not a shape; MxNxK is needed"):
        command.main(["judge", str(BF16), "--timed", "64x128"])
    with pytest.raises(gl.GemmLadderError, match="'uneven' is not a case"):
        gl.judge(BF16, operands="bf16", cases=["uneven"])


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.cu"
    assert cli.main(["lab", "new", str(path), "--from", "s4_tma", "--operands", "bf16"]) == 0
    assert f"Next: python -m gemm_ladder lab judge {path} --operands bf16" in capsys.readouterr().out
    head = path.read_text().split("#include")[0]
    assert "lab judge mine.cu --operands bf16" in head and "sfa and sfb are null" in head
    assert all(len(line) <= 120 for line in head.splitlines())
    options = ["--operands", "bf16", "--device", "cpu", "--seconds", "2", "--cases", "one_tile,one_row"]
    assert cli.main(["lab", "judge", str(BF16), *options]) == 0
    assert capsys.readouterr().out.startswith(
        "RIGHT: own_rung_bf16: its product is the tensor cores' bit for bit"
    )


@pytest.mark.usefixtures("fake_gpu")
def test_bf16_on_a_pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As test_lab_judge's: the emulator in the GPU's place. The kernel is timed beside cuBLAS."""
    build = Given.build
    monkeypatch.setattr(Given, "build", lambda given, target: build(given, "emulator"))
    stream = types.SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)

    def launcher(library: ctypes.CDLL) -> Callable[[int], bytes | None]:
        def start(address: int) -> bytes | None:
            said = emulator.launch(library, GemmArgs.from_address(address))
            return said.encode() if said else None

        return start

    monkeypatch.setattr(launch, "launcher", launcher)
    monkeypatch.setattr(judging_on_gpu, "TIMED", ((64, 128, 128),))
    cases = ["one_tile", "ragged_65"]
    verdict = gl.judge(BF16, operands="bf16", device="cuda", cases=cases)
    assert verdict.right and "in 2 shapes and 6 runs on a GPU" in verdict.sentence, verdict
    assert "64 x 128 x 128: cublas_bf16 100 us, own_rung_bf16 (yours) 100 us" in str(verdict)

    # Wrong where there are many K blocks, as at the shape that is timed, and not in these cases.
    wrong = changed(BF16, "block > 0 || byte > 0", "(block > 0 && block != 9) || byte > 0")
    verdict = gl.judge(wrong, operands="bf16", device="cuda", cases=cases, timed=[(64, 128, 1024)])
    assert not verdict.right and not verdict.times
    assert re.search(r"64 x 128 x 1024 \(timed\): its relative error is 0\.\d+", verdict.sentence), verdict

"""One test suite for all rungs: every rung runs every case, on the emulator and on a GPU.

A test's `rung` and `machine` are parameters; `machine` is the emulator or, where there is one, a GPU
(conftest.py). A rung that is added to `gemm_ladder.rungs` is tested without further changes here.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from cases import place
from gemm_ladder.arguments import EMULATED_SMS
from gemm_ladder.lab.agreement import BF16_WORST, tolerance, values
from gemm_ladder.lab.cases import CASES, GPU_CASES, UNEVEN_CASES, Case
from gemm_ladder.lab.operands import (
    OTHER_ARITHMETIC,
    PARTS,
    Arithmetic,
    Operands,
    Split,
    any_finite,
    normal,
    small_integers,
)
from gemm_ladder.launch import usable_sms
from gemm_ladder.production.launching import configuration
from gemm_ladder.ref import metrics
from gemm_ladder.rungs import Rung
from gemm_ladder.settings import num_sms_limit
from rung_runs import DEVICE, KERNELS, RUNGS, TALL, TILES, WIDE, launched, name, run


def supported(rungs: list[Rung], cases: Sequence[Case]) -> list:
    """A parameter for every (rung, case) that the rung supports."""
    return [
        pytest.param(rung, case, id=f"{rung.name}-{case.name}")
        for rung in rungs
        for case in cases
        if rung.supports(case.m, case.n, case.k) is None
    ]


@functools.cache
def result(rung: Rung, case: Case, machine: str) -> np.ndarray:
    """What several tests look at, computed once."""
    return run(rung, case.operands, machine)


ALL = supported(RUNGS, CASES + UNEVEN_CASES)
NORMAL = [parameter for parameter in ALL if parameter.values[1].fill is normal]
EXACT = [parameter for parameter in ALL if parameter.values[1].exact]


@pytest.mark.parametrize(("rung", "case"), ALL)
def test_bits(rung, case, machine):
    """The bits are those of the model of the unit that computes them, NaN and infinities as well."""
    check_bits(rung, case, machine)


@pytest.mark.gpu
@pytest.mark.parametrize(("rung", "case"), supported(KERNELS, GPU_CASES))
def test_bits_of_more_than_a_gpu_has_room_for(rung, case):
    check_bits(rung, case, "gpu")


def arithmetic(rung: Rung, case: Case, machine: str) -> Arithmetic:
    """Who adds up the rung's products: s9_production splits K where a product has few tiles."""
    if rung.name != "s9_production":
        return OTHER_ARITHMETIC.get(rung.name, "tensor core")
    num_sms, gpu = EMULATED_SMS, ""
    if machine == "gpu":
        device = torch.device("cuda")
        num_sms, gpu = usable_sms(device, num_sms_limit()), torch.cuda.get_device_name(device)
    config = configuration("dense", case.m, case.n, case.k, 1, None, num_sms, gpu)
    if config.share != "K":
        return "tensor core"
    return next(name for name, split in PARTS.items() if split == Split(config.cluster, rounded_up=False))


def check_bits(rung: Rung, case: Case, machine: str) -> None:
    found, expected = result(rung, case, machine), case.operands.bits(arithmetic(rung, case, machine))
    wrong = np.argwhere(found != expected)
    assert not len(wrong), (
        f"{len(wrong)} of {found.size} differ, first at {wrong[0]}: "
        f"{found[tuple(wrong[0])]:#06x}, expected {expected[tuple(wrong[0])]:#06x}"
    )


@pytest.mark.parametrize(("cases", "num_sms"), [(CASES, EMULATED_SMS), (GPU_CASES, 132), (GPU_CASES, 78)])
def test_cases_reach_both_tiles(cases, num_sms):
    """Each case takes the s7 tile that its name says, and with both tiles some CTAs compute several."""
    several = set()
    for case in cases:
        config = launched(gl.rungs["s7_persistent"], case.m, case.n, case.k, num_sms)
        tile = TILES[config.shared_bytes]
        assert tile == (TALL if case.name.startswith("tall") else WIDE), case.name
        pairs = -(-case.m // tile[0]) * -(-case.n // (2 * tile[1]))
        if pairs % 2 and pairs > config.blocks // config.cluster:
            several.add(tile)
    assert several == {TALL, WIDE}


@pytest.mark.parametrize(("rung", "case"), EXACT)
def test_exact(rung, case, machine):
    """Where nothing is rounded but the result, every rung gives the reference's own rounding."""
    expected = case.operands.expected_bits("s0_numpy")
    np.testing.assert_array_equal(result(rung, case, machine), expected)


@pytest.mark.parametrize(("rung", "case"), NORMAL)
def test_error(rung, case, machine):
    found, exact = values(result(rung, case, machine)), case.operands.exact()
    smallest_tile = (case.m % 64 or 64) * (case.n % 64 or 64)
    assert metrics.relative_error(found, exact) < tolerance(found.size)
    assert metrics.calc_diff(found, exact) < tolerance(found.size) ** 2 / 2
    assert metrics.max_tile_error(found, exact) < tolerance(smallest_tile)
    assert metrics.max_row_error(found, exact) < tolerance(1)


@pytest.mark.gpu
@pytest.mark.parametrize(("rung", "case"), supported(KERNELS, CASES + UNEVEN_CASES))
def test_machines_agree(rung, case):
    """The GPU and the emulator run the same source and give the same bits, if they split K alike:
    s9_production chooses for the number of SMs. test_bits has each machine's own."""
    splits = {machine: arithmetic(rung, case, machine) for machine in ("gpu", "emulator")}
    if len(set(splits.values())) > 1:
        pytest.skip(f"s9_production chooses other splits of K: {splits}")
    np.testing.assert_array_equal(result(rung, case, "gpu"), result(rung, case, "emulator"))


@pytest.mark.parametrize("rung", RUNGS, ids=name)
def test_nan_goes_where_it_belongs(rung, machine):
    """A NaN in a row of A makes that row of D NaN, in a row of B that column, and nothing else."""
    operands = normal(np.random.default_rng(5), 70, 136, 256)
    operands.a[65, 200] = 0x7F
    operands.b[130, 17] = 0xFF
    found = np.isnan(values(run(rung, operands, machine)))
    expected = np.zeros_like(found)
    expected[65], expected[:, 130] = True, True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rung", RUNGS, ids=name)
def test_overflow_is_infinite(rung, machine):
    """Beyond BF16's (and FP32's) range results are infinite, with the right sign; other rows are right."""
    operands = small_integers(np.random.default_rng(6), 9, 16, 128)
    operands.a[:, 0] = operands.b[:, 0] = 0x70  # 128: the product outweighs the other 127, all positive sums
    operands.sfa[4], operands.sfa[5] = 3e38, -3e38
    found, exact = values(run(rung, operands, machine)), operands.exact()
    assert (found[4] == np.inf).all() and (found[5] == -np.inf).all()
    others = [0, 1, 2, 3, 6, 7, 8]
    assert metrics.max_row_error(found[others], exact[others]) < BF16_WORST + Operands.lost


@pytest.mark.parametrize("rung", KERNELS, ids=name)
def test_repeats_its_bits(rung, machine):
    """A second call into the same output, and a call into another one, give the same bits."""
    operands = any_finite(np.random.default_rng(7), 100, 136, 256)
    placed = place(operands, DEVICE[machine])
    rung(placed.lhs, placed.rhs, placed.out)
    first = placed.bits().copy()
    rung(placed.lhs, placed.rhs, placed.out)
    np.testing.assert_array_equal(placed.bits(), first)
    np.testing.assert_array_equal(run(rung, operands, machine), first)


@pytest.mark.parametrize("rung", KERNELS, ids=name)
def test_inputs_are_only_read(rung, machine):
    placed = place(normal(np.random.default_rng(8), 65, 136, 256), DEVICE[machine])
    inputs = [tensor.view(torch.uint8) for tensor in (placed.lhs[0], placed.lhs[1].T, *placed.rhs)]
    before = [tensor.clone() for tensor in inputs]
    rung(placed.lhs, placed.rhs, placed.out)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("rung", KERNELS, ids=name)
def test_a_row_does_not_depend_on_the_others(rung, machine):
    """The same row of A gives the same bits for every m and at every position."""
    operands = normal(np.random.default_rng(9), 130, 72, 256)
    whole = run(rung, operands, machine)
    for begin, end in [(0, 1), (0, 63), (0, 64), (0, 65), (0, 127), (0, 128), (0, 129), (1, 2), (66, 130)]:
        np.testing.assert_array_equal(run(rung, operands.rows(begin, end), machine), whole[begin:end])


@pytest.mark.parametrize("rung", KERNELS, ids=name)
def test_touches_nothing_outside_its_tensors(rung):
    """Not even unused reads are allowed (fenced_memory.py). On a GPU compute-sanitizer tests this."""
    script = Path(__file__).parent / "fenced_memory.py"
    run = subprocess.run([sys.executable, script, rung.name], capture_output=True, text=True)
    assert run.stdout.endswith("done\n"), f"exit status {run.returncode}\n{run.stdout}{run.stderr}"


@pytest.mark.parametrize("rung", RUNGS, ids=name)
def test_no_rows(rung, machine):
    operands = normal(np.random.default_rng(10), 0, 136, 256)
    assert run(rung, operands, machine).shape == (0, 136)


def sfa_row_major(sfa: torch.Tensor) -> torch.Tensor:
    return sfa.contiguous()


def sfa_unpadded(sfa: torch.Tensor) -> torch.Tensor:
    return sfa.T.contiguous().T


def sfa_strided(sfa: torch.Tensor) -> torch.Tensor:
    return sfa.repeat_interleave(2, dim=1)[:, ::2]


def sfa_misaligned(sfa: torch.Tensor) -> torch.Tensor:
    m, blocks = sfa.shape
    rows = -(-m // 4) * 4
    return (
        torch.empty(1 + rows * blocks, device=sfa.device)[1:].as_strided((m, blocks), (1, rows), 1).copy_(sfa)
    )


@pytest.mark.parametrize("rung", RUNGS, ids=name)
def test_scales_in_other_layouts(rung, machine):
    operands = normal(np.random.default_rng(11), 65, 264, 384)
    expected = run(rung, operands, machine)
    for convert in (sfa_row_major, sfa_unpadded, sfa_strided, sfa_misaligned):
        placed = place(operands, DEVICE[machine])
        a, sfa = placed.lhs
        converted = convert(sfa)
        assert converted.stride() != sfa.stride() or converted.data_ptr() % 16
        rung((a, converted), placed.rhs, placed.out)
        np.testing.assert_array_equal(placed.bits(), expected, err_msg=convert.__name__)
    placed = place(operands, DEVICE[machine])
    b, sfb = placed.rhs
    rung(placed.lhs, (b, sfb.T.contiguous().T), placed.out)
    np.testing.assert_array_equal(placed.bits(), expected, err_msg="sfb transposed")


@pytest.mark.parametrize("rung", KERNELS, ids=name)
def test_refuses_what_it_does_not_support(rung, machine):
    """The error is the sentence that `supports` returns, and the output is not touched."""
    shapes = [(5, 131, 128), (5, 136, 200), (5, 4, 128), (5, 128, 64), (5, 8, 16)]
    for m, n, k in shapes:
        if reason := rung.supports(m, n, k):
            placed = place(normal(np.random.default_rng(12), m, n, k), DEVICE[machine])
            with pytest.raises(gl.GemmLadderError) as refusal:
                rung(placed.lhs, placed.rhs, placed.out)
            assert str(refusal.value) == reason
            assert placed.untouched()


def test_supports():
    s1, s3 = gl.rungs["s1_naive"], gl.rungs["s3_wgmma"]
    assert s1.supports(0, 1, 1) is None and s1.supports(3, 5, 7) is None
    assert s3.supports(0, 8, 128) is None and s3.supports(1, 2112, 7168) is None
    assert s3.supports(5, 100, 256) == "s3_wgmma is given n = 100; a multiple of 8 is needed"
    assert s3.supports(5, 128, 200) == "s3_wgmma is given k = 200; a multiple of 128 is needed"
    for rung in RUNGS:
        assert "n >= 1" in rung.supports(1, 0, 128)
        assert "m >= 0" in rung.supports(-1, 8, 128)
        most = 2**31 - 128
        assert all(rung.supports(*sizes) is None for sizes in [(most, 8, 128), (1, most, 128), (1, 8, most)])
        for sizes in [(2**31, 8, 128), (1, 2**31, 128), (1, 8, 2**31)]:
            assert rung.supports(*sizes).endswith("; each must be below 2^31")
        with pytest.raises(gl.GemmLadderError, match="target is 'metal'"):
            rung.build("metal")


def test_the_ladder():
    assert list(gl.rungs)[:3] == ["s0_numpy", "s1_naive", "s2_tiled"]
    for rung in RUNGS:
        assert gl.rungs[rung.name] is rung
        assert rung.idea and rung.source == rung.path.read_text()
        elsewhere = {name: "gemm" for name in ("s0_numpy", "s9_production")}
        elsewhere["s8_ffma_interleave"] = "s7_persistent"
        assert rung.path.stem == elsewhere.get(rung.name, rung.name)


def test_unknown_rung():
    with pytest.raises(KeyError) as error:
        gl.rungs["s9_magic"]
    assert isinstance(error.value, gl.GemmLadderError)
    assert "'s9_magic'" in str(error.value) and "s0_numpy, s1_naive, s2_tiled" in str(error.value)
    assert "s9_magic" not in gl.rungs and gl.rungs.get("s9_magic") is None


# Only on a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("rung", KERNELS, ids=name)
def test_current_stream(rung):
    """The kernel waits for earlier work on its stream, and the call does not wait for the stream."""
    operands = normal(np.random.default_rng(16), 128, 128, 256)
    expected = operands.expected_bits(rung.name)
    run(rung, operands, "gpu")  # built and loaded, so that the call below only launches
    placed = place(operands, "cuda")
    a, sfa = placed.lhs
    late = a.clone()
    a.view(torch.uint8).fill_(0x7F)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles, about 30 ms
        a.view(torch.uint8).copy_(late.view(torch.uint8))
        rung((a, sfa), placed.rhs, placed.out)
        assert not stream.query(), "the call waited for the stream"
    stream.synchronize()
    np.testing.assert_array_equal(placed.bits(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("rung", KERNELS, ids=name)
def test_current_stream_orders_the_conversion_of_scales(rung):
    operands = normal(np.random.default_rng(17), 65, 136, 256)
    expected = run(rung, operands, "gpu")
    placed = place(operands, "cuda")
    a, sfa = placed.lhs
    right, late = sfa.contiguous(), torch.full(sfa.shape, float("nan"), device="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(right)
        rung((a, late), placed.rhs, placed.out)
    stream.synchronize()
    np.testing.assert_array_equal(placed.bits(), expected)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("rung", KERNELS, ids=name)
def test_more_than_2_31_elements(rung):
    """The last rows are right where offsets into the output, and then into A, need more than 32 bits."""
    for m, n, k in [(2**31 // 4096 + 70, 4096, 128), (2**31 // 8192 + 70, 64, 8192)]:
        rows = 80
        tail = normal(np.random.default_rng(18), rows, n, k)
        a = torch.zeros(m, k, dtype=torch.uint8, device="cuda")
        sfa = torch.ones(-(-k // 128), -(-m // 4) * 4, device="cuda").T[:m]
        a[m - rows :], sfa[m - rows :] = torch.from_numpy(tail.a), torch.from_numpy(tail.sfa)
        b, sfb = torch.from_numpy(tail.b).cuda(), torch.from_numpy(tail.sfb).cuda()
        out = torch.full((m, n), float("nan"), dtype=torch.bfloat16, device="cuda")
        rung((a.view(torch.float8_e4m3fn), sfa), (b.view(torch.float8_e4m3fn), sfb), out)
        found = out[m - rows :].view(torch.int16).cpu().numpy().view(np.uint16)
        np.testing.assert_array_equal(found, tail.expected_bits(rung.name))
        assert not out[: m - rows].any(), "rows of zeros"  # NaN counts as true

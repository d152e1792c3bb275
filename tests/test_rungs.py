"""One test suite for all rungs: every rung runs every case, on the emulator and on a GPU.

A test's `rung` and `machine` are parameters; `machine` is the emulator or, where there is one, a GPU
(conftest.py). A rung that is added to `gemm_ladder.rungs` is tested without further changes here.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from cases import CASES, GPU_CASES, UNEVEN_CASES, Case, Operands, any_finite, normal, place, small_integers
from gemm_ladder.arguments import EMULATED_SMS, GemmArgs
from gemm_ladder.errors import LaunchError
from gemm_ladder.ref import emulator, metrics
from gemm_ladder.rungs import Rung

RUNGS = list(gl.rungs.values())
KERNELS = [rung for rung in RUNGS if rung.path.suffix in (".cu", ".cuh")]
DEVICE = {"emulator": "cpu", "gpu": "cuda"}
SEEDS = int(os.environ.get("GEMM_LADDER_SEEDS", "40"))

# A normal product's error, relative to the norm of what is measured (a matrix, a tile, a row).
#
# BF16 keeps 8 significant bits, so that rounding moves a number by at most 2^-8 of it; over numbers whose
# significands are spread as those of sums are, the root mean square is 2^-7 / sqrt(12) / 1.45 = 0.80 * 2^-9.
#
# The tensor core truncates each product, and the sum so far, to 2^(E - 13), E the largest exponent among
# them. A truncation is off by 2^(E - 13) / sqrt(3) in the root mean square, toward zero; products have both
# signs, so that 33 of them are off by sqrt(33 / 3) * 2^(E - 13) = 3.3 * 2^(E - 13). For normal operands E
# lies about one and a half above the exponent of a product's standard deviation, and the sum of 32 is
# sqrt(32) = 5.7 of those deviations: 3.3 * 2^1.5 / 5.7 * 2^-13 = 1.6 * 2^-13. Cutting the sum itself to 13
# bits adds less than 2^-13, and four such instructions for a K block do not change the ratio: at most 2^-12
# for the norm of many numbers. Rounding in FP32 (s1, the promotion) is too small to matter.
#
# 128 numbers average enough for the root mean square (it leaves 20%); the norm of fewer may be as bad as its
# worst number, and its truncation error a few times the mean.
BF16_RMS, BF16_WORST, TENSOR_CORE = 2.0**-9, 2.0**-8, 2.0**-12


def tolerance(count: int) -> float:
    """The largest error that is accepted in the norm of `count` numbers."""
    return BF16_RMS + TENSOR_CORE if count >= 128 else BF16_WORST + 4 * TENSOR_CORE


def name(thing: object) -> str:
    return thing.name


def supported(rungs: list[Rung], cases: list[Case]) -> list:
    """A parameter for every (rung, case) that the rung supports."""
    return [
        pytest.param(rung, case, id=f"{rung.name}-{case.name}")
        for rung in rungs
        for case in cases
        if rung.supports(case.m, case.n, case.k) is None
    ]


def run(rung: Rung, operands: Operands, machine: str, seed: int = 0) -> np.ndarray:
    """uint16 [m, n], the BF16 bits."""
    placed = place(operands, DEVICE[machine])
    with gl.emulator(seed=seed):
        assert rung(placed.lhs, placed.rhs, placed.out) is None
    return placed.bits()


@functools.cache
def result(rung: Rung, case: Case, machine: str) -> np.ndarray:
    """What several tests look at, computed once."""
    return run(rung, case.operands, machine)


def values(bits: np.ndarray) -> np.ndarray:
    """BF16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


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


def check_bits(rung: Rung, case: Case, machine: str) -> None:
    found, expected = result(rung, case, machine), case.operands.expected_bits(rung.name)
    wrong = np.argwhere(found != expected)
    assert not len(wrong), (
        f"{len(wrong)} of {found.size} differ, first at {wrong[0]}: "
        f"{found[tuple(wrong[0])]:#06x}, expected {expected[tuple(wrong[0])]:#06x}"
    )


def launched(rung: Rung, m: int, n: int, k: int, num_sms: int) -> emulator.LaunchConfig:
    """The launch that the rung's launcher would make."""
    args = GemmArgs(m=m, n=n, k=k, sfa_stride=-(-m // 4) * 4, num_sms=num_sms)  # nothing runs: no tensors
    with gl.emulator(dry=True) as dry:
        assert emulator.launch(rung.build("emulator").lib, args) is None
    return dry.launches[0]


# s5's two tiles. Their launches differ in the bytes of shared memory. A cluster computes two side by side.
TALL, WIDE = (256, 128), (128, 192)
TILES = {219136: TALL, 217088: WIDE}  # bytes of shared memory per CTA


@pytest.mark.parametrize(("cases", "num_sms"), [(CASES, EMULATED_SMS), (GPU_CASES, 132), (GPU_CASES, 78)])
def test_cases_reach_both_tiles(cases, num_sms):
    """Each case takes the s5 tile that its name says, and with both tiles some CTAs compute several."""
    several = set()
    for case in cases:
        config = launched(gl.rungs["s5_warp_specialized"], case.m, case.n, case.k, num_sms)
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
    """The GPU and the emulator run the same source and give the same bits."""
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
    assert metrics.max_row_error(found[others], exact[others]) < BF16_WORST + TENSOR_CORE


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
    s1, s2 = gl.rungs["s1_naive"], gl.rungs["s2_wgmma"]
    assert s1.supports(0, 1, 1) is None and s1.supports(3, 5, 7) is None
    assert s2.supports(0, 8, 128) is None and s2.supports(1, 2112, 7168) is None
    assert s2.supports(5, 100, 256) == "s2_wgmma is given n = 100; a multiple of 8 is needed"
    assert s2.supports(5, 128, 200) == "s2_wgmma is given k = 200; a multiple of 128 is needed"
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
    assert list(gl.rungs)[:3] == ["s0_numpy", "s1_naive", "s2_wgmma"]
    for rung in RUNGS:
        assert gl.rungs[rung.name] is rung
        assert rung.idea and rung.source == rung.path.read_text()
        elsewhere = {name: "gemm" for name in ("s0_numpy", "s7_production")}
        elsewhere["s6_ffma_interleave"] = "s5_warp_specialized"
        assert rung.path.stem == elsewhere.get(rung.name, rung.name)


def test_unknown_rung():
    with pytest.raises(KeyError) as error:
        gl.rungs["s9_magic"]
    assert isinstance(error.value, gl.GemmLadderError)
    assert "'s9_magic'" in str(error.value) and "s0_numpy, s1_naive, s2_wgmma" in str(error.value)
    assert "s9_magic" not in gl.rungs and gl.rungs.get("s9_magic") is None


# The emulator, driven from Python.


# Ten K blocks go around a ring of four stages two and a half times. Three pairs of s5's tiles, tall or wide,
# are one more than the clusters that the emulated SMs hold, so that a persistent CTA computes a second tile.
SEEDED = {TALL: (520, 136, 1280), WIDE: (300, 264, 1280)}


@pytest.mark.parametrize(
    ("rung", "tile"),
    [
        pytest.param(rung, tile, id=f"{rung.name}-{tile[0]}x{tile[1]}")
        for rung in KERNELS
        for tile in (SEEDED if rung.path.stem == "s5_warp_specialized" else [TALL])
    ],
)
def test_every_seed_gives_the_same_bits(rung, tile):
    """Seeds change the order of threads and the delays, not the result. GEMM_LADDER_SEEDS: how many seeds."""
    if rung.path.stem == "s5_warp_specialized":
        assert TILES[launched(rung, *SEEDED[tile], EMULATED_SMS).shared_bytes] == tile
    operands = normal(np.random.default_rng(13), *SEEDED[tile])
    expected = operands.expected_bits(rung.name)
    for seed in range(1, SEEDS + 1):
        np.testing.assert_array_equal(run(rung, operands, "emulator", seed), expected, err_msg=f"seed {seed}")


def record(rung: Rung, operands: Operands, **choices):
    placed = place(operands)
    with gl.emulator(record=True, **choices) as recorded:
        rung(placed.lhs, placed.rhs, placed.out)
    return recorded


TINY = normal(np.random.default_rng(14), 8, 8, 128)


def test_events_say_what_happened():
    """Four tiles, two K blocks: each of four warps issues 2 * 4 WGMMAs, and its tensor core executes them."""
    recorded = record(gl.rungs["s2_wgmma"], normal(np.random.default_rng(19), 100, 136, 256))
    events = recorded.events
    assert events.dtype.names == ("launch", "step", "cluster", "block", "thread", "kind", "address", "value")
    assert set(events["block"]) == set(range(4))
    for block in range(4):
        of_block = events[events["block"] == block]
        assert (np.diff(of_block["step"].astype(np.int64)) >= 0).all(), "not in order"
        assert of_block["thread"].min() >= -1 and of_block["thread"].max() < 128
        issued, executed = of_block["kind"] == "wgmma", of_block["kind"] == "wgmma_executed"
        assert issued.sum() == executed.sum() == 2 * 4 * 4
        assert (of_block["value"][issued] == 128).all()
        assert (of_block["thread"][executed] == -1).all()
    assert int(events["step"].max()) < recorded.steps


def test_launches_of_one_block_are_kept_apart():
    placed = place(TINY)
    with gl.emulator(seed=1, record=True) as recorded:
        gl.rungs["s2_wgmma"](placed.lhs, placed.rhs, placed.out)
        alone = recorded.events, recorded.steps
        gl.rungs["s2_wgmma"](placed.lhs, placed.rhs, placed.out)
    assert recorded.steps == 2 * alone[1]
    assert set(recorded.events["launch"]) == {0, 1}
    assert (recorded.events[: len(alone[0])] == alone[0]).all()


def test_nothing_is_recorded_by_default():
    placed = place(TINY)
    with gl.emulator(seed=1) as recorded:
        gl.rungs["s2_wgmma"](placed.lhs, placed.rhs, placed.out)
    assert recorded.steps > 0 and len(recorded.events) == 0


def test_threads_have_their_own_emulator():
    """Python threads run at the same time, and each has its own seed and record."""
    rung = gl.rungs["s2_wgmma"]
    expected = {seed: record(rung, TINY, seed=seed) for seed in range(4)}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: record(rung, TINY, seed=seed), range(4)))
    for seed, recorded in enumerate(found):
        assert recorded.steps == expected[seed].steps
        assert (recorded.events == expected[seed].events).all()


def test_contexts_nest():
    rung = gl.rungs["s2_wgmma"]
    placed = place(TINY)
    with gl.emulator(seed=1) as outer:
        with gl.emulator(seed=2, record=True) as inner:
            rung(placed.lhs, placed.rhs, placed.out)
        assert outer.steps == 0
        rung(placed.lhs, placed.rhs, placed.out)
    assert outer.steps == record(rung, TINY, seed=1).steps
    assert (inner.events == record(rung, TINY, seed=2).events).all()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"seed": -1}, "seed is -1; an integer from 0 to 2^64 - 1 is needed"),
        ({"seed": 2**64}, f"seed is {2**64}; an integer from 0 to 2^64 - 1 is needed"),
        ({"seed": "x"}, "seed is 'x'; an integer from 0 to 2^64 - 1 is needed"),
        ({"threads": 0}, "threads is 0; a positive number of OS threads, or None, is needed"),
    ],
)
def test_emulator_refuses(choices, message):
    with pytest.raises(gl.GemmLadderError) as refusal, gl.emulator(**choices):
        pass
    assert str(refusal.value) == message


class Planted(Rung):
    """A rung whose source is given."""

    def build(self, target):
        return gl.build.load(self.idea, target=target, name=self.name)


DEADLOCK = """
#include "launch.cuh"
#include "ptx.cuh"

__global__ void waits_for_nobody(const GemmArgs) {
    if (threadIdx.x == 0) ptx::mbarrier_init(ptx::shared_memory(), 1);
    __syncthreads();
    ptx::mbarrier_wait_parity(ptx::shared_memory(), 0);
}

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    return launch(waits_for_nobody, {.blocks = 1, .threads = 32, .shared_bytes = 64}, *args);
}
"""


def test_a_fault_is_an_error_with_its_events():
    """A kernel that waits forever is reported, and the events before the deadlock are recorded."""
    rung, placed = Planted("deadlock", DEADLOCK), place(TINY)
    with (
        pytest.raises(gl.EmulatorError, match=r"^emulator: .*mbarrier") as error,
        gl.emulator(record=True) as recorded,
    ):
        rung(placed.lhs, placed.rhs, placed.out)
    assert isinstance(error.value, RuntimeError) and isinstance(error.value, gl.GemmLadderError)
    assert len(recorded.events)
    assert placed.untouched()


REFUSES = """
#include "launch.cuh"

extern "C" const char* gemm_ladder_launch(const GemmArgs* args) {
    return args->m == 8 ? "8 rows are too few" : nullptr;
}
"""


def test_a_launcher_that_refuses():
    """The error text that a launcher returns becomes a LaunchError, not an EmulatorError."""
    placed = place(TINY)
    with pytest.raises(LaunchError, match=r"^refuses: 8 rows are too few$"):
        Planted("refuses", REFUSES)(placed.lhs, placed.rhs, placed.out)


# The package.


def python(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light():
    """No torch, no Numba, nothing compiled; the table of rungs is there."""
    heavy = "{'torch', 'numpy', 'numba', 'matplotlib'}"
    code = f"import sys, gemm_ladder as gl; print(sorted({heavy} & set(sys.modules)), *gl.rungs)"
    assert python(code).split() == ["[]", *gl.rungs]


def test_public_names():
    code = "import gemm_ladder as gl; [getattr(gl, name) for name in gl.__all__]; print(*gl.__all__)"
    assert python(code).split() == [
        "Config",
        "EmulatorError",
        "GemmLadderError",
        "bench",
        "bench_kineto",
        "build",
        "calc_diff",
        "ceil_div",
        "emulator",
        "fp8_gemm_nt",
        "fp8_m_grouped_gemm_nt_masked",
        "gemm_fp8_fp8_bf16_nt",
        "get_col_major_tma_aligned_tensor",
        "get_m_alignment_for_contiguous_layout",
        "get_mk_alignment_for_contiguous_layout",
        "get_mn_major_tma_aligned_tensor",
        "get_num_sms",
        "get_theoretical_mk_alignment_for_contiguous_layout",
        "get_tma_aligned_size",
        "m_grouped_fp8_gemm_nt_contiguous",
        "m_grouped_fp8_gemm_nt_masked",
        "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous",
        "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
        "precompile",
        "ref",
        "rungs",
        "set_mk_alignment_for_contiguous_layout",
        "set_num_sms",
        "testing",
        "transform_sf_into_required_layout",
        "tune",
        "utils",
    ]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gl.nonsense


def test_rungs_is_the_mapping_after_any_import():
    """The mapping and the module that defines it have one name."""
    code = "import gemm_ladder.rungs as r, gemm_ladder as gl; print(r is gl.rungs, type(r).__name__)"
    assert python(code).split() == ["True", "Rungs"]


def test_cpu_tensors_leave_cuda_alone():
    code = """if True:
        import torch, gemm_ladder as gl
        a = torch.zeros(1, 128).to(torch.float8_e4m3fn)
        one, out = torch.ones(1, 1), torch.empty(1, 1, dtype=torch.bfloat16)
        gl.rungs["s0_numpy"]((a, one), (a, one), out)
        print(out.item(), torch.cuda.is_initialized())
    """
    assert python(code).split() == ["0.0", "False"]


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

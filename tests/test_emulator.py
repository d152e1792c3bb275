"""Each instruction alone, on the emulator and on a GPU if there is one, against a result computed in Python.

The kernels are in units.cu. On the emulator every test runs over several seeds, each another schedule.
"""

from __future__ import annotations

import subprocess
import sys

import gemm_ladder as gl
import numpy as np
import pytest
from gemm_ladder.ref import fp8, gemm, layouts, tensor_core
from unit_kernels import BOX, BOX_COLUMNS, BOX_ROWS, UNITS, library, run_bad_box, run_unit, store_into_middle

SEEDS = range(8)


def for_each_schedule(machine: str):
    return SEEDS if machine == "emulator" else range(1)


def window(matrix: np.ndarray, y: int, x: int, rows: int, columns: int) -> np.ndarray:
    """The box at (y, x), with zeros where it is outside the matrix."""
    padded = np.pad(matrix, 256)
    return padded[256 + y : 256 + y + rows, 256 + x : 256 + x + columns]


def swizzled(box: np.ndarray) -> np.ndarray:
    """The bytes of a uint8 box [rows, 32, 64 or 128] in the order in which they lie in shared memory."""
    lying = np.empty(box.size, np.uint8)
    row, byte = np.indices(box.shape)
    lying[layouts.swizzle(row, byte, box.shape[1])] = box
    return lying


@pytest.mark.parametrize("row_bytes", [32, 64, 128])
@pytest.mark.parametrize(("y", "x"), [(0, 0), (3, 128), (30, 64), (39, 144), (-5, -16), (100, 0)])
def test_tma_load_swizzles_and_fills_with_zeros(machine: str, y: int, x: int, row_bytes: int) -> None:
    matrix = np.random.default_rng(0).integers(1, 256, (40, 160), np.uint8)
    for seed in for_each_schedule(machine):
        out = np.zeros(BOX_ROWS * row_bytes, np.uint8)
        run_unit(machine, 0, out, matrix, seed, rows=40, columns=160, x=x, y=y, row_bytes=row_bytes)
        np.testing.assert_array_equal(out, swizzled(window(matrix, y, x, BOX_ROWS, row_bytes)))


def test_tma_load_with_a_hint_for_l2_is_a_load(machine: str) -> None:
    matrix = np.random.default_rng(5).integers(1, 256, (40, 160), np.uint8)
    for seed in for_each_schedule(machine):
        out = np.zeros(BOX, np.uint8)
        run_unit(machine, 10, out, matrix, seed, rows=40, columns=160, x=48, y=30)
        np.testing.assert_array_equal(out, swizzled(window(matrix, 30, 48, BOX_ROWS, BOX_COLUMNS)))


@pytest.mark.parametrize("unit", [13, 16], ids=["its box", "its map"])
@pytest.mark.parametrize(("y", "x"), [(30, 48), (39, 144), (-5, -16)])
def test_what_is_prefetched_is_loaded_as_it_is(machine: str, y: int, x: int, unit: int) -> None:
    matrix = np.random.default_rng(7).integers(1, 256, (40, 160), np.uint8)
    for seed in for_each_schedule(machine):
        out = np.zeros(BOX, np.uint8)
        run_unit(machine, unit, out, matrix, seed, rows=40, columns=160, x=x, y=y)
        np.testing.assert_array_equal(out, swizzled(window(matrix, y, x, BOX_ROWS, BOX_COLUMNS)))


@pytest.mark.parametrize(("y", "x"), [(0, 0), (5, 8), (35, 28), (0, -4)])
def test_tma_load_of_floats_without_swizzle(machine: str, y: int, x: int) -> None:
    matrix = np.random.default_rng(1).standard_normal((40, 44)).astype(np.float32)
    for seed in for_each_schedule(machine):
        out = np.zeros((BOX_ROWS, 32), np.float32)
        run_unit(machine, 1, out, matrix, seed, rows=40, columns=44, x=x, y=y)
        np.testing.assert_array_equal(out, window(matrix, y, x, BOX_ROWS, 32))


def test_multicast_reaches_both_blocks_at_the_same_place(machine: str) -> None:
    matrix = np.random.default_rng(2).integers(0, 256, (2 * BOX_ROWS, BOX_COLUMNS), np.uint8)
    for seed in for_each_schedule(machine):
        out = np.zeros((2, 2 * BOX), np.uint8)
        run_unit(machine, 2, out, matrix, seed, rows=2 * BOX_ROWS, columns=BOX_COLUMNS)
        for block in out:
            np.testing.assert_array_equal(block, swizzled(matrix))


@pytest.mark.parametrize("row_bytes", [32, 64, 128])
@pytest.mark.parametrize(("y", "x"), [(0, 0), (8, 32), (0, 128)])
def test_tma_store_unswizzles_and_clips(machine: str, y: int, x: int, row_bytes: int) -> None:
    index = np.arange(BOX_ROWS * row_bytes).reshape(BOX_ROWS, row_bytes)
    box = (index & 0xFF).astype(np.uint8)
    for seed in for_each_schedule(machine):
        canvas = np.full((3 * 20, 144), 0xEE, np.uint8)  # the tensor is the middle third
        expected = canvas.copy()
        for r, c in np.argwhere(np.ones_like(box)):
            if 0 <= y + r < 20 and 0 <= x + c < 144:
                expected[20 + y + r, x + c] = box[r, c]
        store_into_middle(machine, canvas, seed, x, y, row_bytes)
        np.testing.assert_array_equal(canvas, expected)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (8, 4), (0, 12), (19, 32)])
def test_tma_reduction_adds_and_clips(machine: str, y: int, x: int) -> None:
    """Floats in global memory are added to, each sum rounded once; the others keep their bits. A subnormal
    number stays one, though PTX says of red.add.f32 that it counts as zero."""
    rng = np.random.default_rng(8)
    before = rng.normal(scale=1e6, size=(20, 36)).astype(np.float32)
    before[0, :4] = [1e-40, np.inf, np.nan, -0.0]
    box = np.arange(BOX_ROWS * 32, dtype=np.float32).reshape(BOX_ROWS, 32)
    inside = box[: 20 - y, : 36 - x]
    expected = before.copy()
    expected[y : y + len(inside), x : x + inside.shape[1]] += inside
    for seed in for_each_schedule(machine):
        out = before.copy()
        run_unit(machine, 15, out, None, seed, rows=20, columns=36, x=x, y=y)
        np.testing.assert_array_equal(out, expected)


def test_tma_stores_take_turns_with_two_buffers(machine: str) -> None:
    turn, _, column = np.indices((6, BOX_ROWS, BOX_COLUMNS))
    expected = (column // 4 * 4 + turn & 0x7F) + column % 4
    for seed in for_each_schedule(machine):
        out = np.zeros((6 * BOX_ROWS, BOX_COLUMNS), np.uint8)
        run_unit(machine, 17, out, None, seed, rows=6 * BOX_ROWS, columns=BOX_COLUMNS)
        np.testing.assert_array_equal(out, expected.reshape(out.shape))


BAD_BOXES = [
    (0, 8, 0, "misaligned", "TMA load at column 8, byte 8 of the row: a multiple of 16 is needed"),
    (1, 7, 5, "misaligned", "TMA load at column 7, byte 28 of the row: a multiple of 16 is needed"),
    (3, 0, -3, "invalid_operand", "TMA store at row -3, column 0: a store may not begin before the tensor"),
    (3, -16, 0, "invalid_operand", "TMA store at row 0, column -16: a store may not begin before the tensor"),
]


@pytest.mark.parametrize(("unit", "x", "y", "what", "message"), BAD_BOXES)
def test_boxes_that_the_copy_engine_refuses(unit: int, x: int, y: int, what: str, message: str) -> None:
    with pytest.raises(gl.EmulatorError, match=message) as error:
        run_bad_box("emulator", unit, x, y)
    assert (error.value.what, error.value.block, error.value.warp, error.value.lane) == (what, 0, 0, 0)
    assert error.value.address == 0x400


@pytest.mark.gpu
@pytest.mark.parametrize(("unit", "x", "y"), [box[:3] for box in BAD_BOXES])
def test_a_gpu_refuses_these_boxes_too(unit: int, x: int, y: int) -> None:
    """In a process of its own, because the error makes its CUDA context unusable."""
    code = f"import unit_kernels; unit_kernels.run_bad_box('gpu', {unit}, {x}, {y})"
    library("cuda")  # compiled here, once
    run = subprocess.run([sys.executable, "-c", code], cwd=UNITS.parent, capture_output=True, text=True)
    assert run.returncode and "illegal instruction" in run.stderr, run.stderr


@pytest.mark.parametrize("unit", [4, 19], ids=["the writers fence", "the reader fences"])
def test_wgmma_reads_through_descriptors_into_fragments(machine: str, unit: int) -> None:
    codes = fp8.encode(np.random.default_rng(3).standard_normal((128, 128)).astype(np.float32))
    codes = np.ascontiguousarray(codes).view(np.uint8)
    a, b = codes[:64], codes[64:]
    zero = np.zeros((64, 64), np.float32)
    first = tensor_core.wgmma(a[:, :32].copy(), b[:, :32].copy(), zero)
    expected = tensor_core.wgmma(a[:, 32:64].copy(), b[:, 32:64].copy(), first)
    row, column = layouts.wgmma_accumulator(64)
    for seed in for_each_schedule(machine):
        out = np.zeros((128, 32), np.float32)
        run_unit(machine, unit, out, codes, seed)
        np.testing.assert_array_equal(out, expected[row, column])


def test_stmatrix_collects_rows_from_four_lanes(machine: str) -> None:
    tile, row, pair = np.indices((4, 8, 4))
    lane = row * 4 + pair
    expected = (100 * lane + tile).astype(np.uint32) * 0x00010001
    for seed in for_each_schedule(machine):
        out = np.zeros((4, 8, 4), np.uint32)
        run_unit(machine, 5, out, None, seed)
        np.testing.assert_array_equal(out, expected)


def test_lanes_shuffle_and_elect(machine: str) -> None:
    thread = np.arange(128)
    expected = np.stack([thread % 32, (thread // 32 * 32 + 5) * 7, np.ones(128)], 1)
    for seed in for_each_schedule(machine):
        out = np.zeros((128, 3), np.uint32)
        run_unit(machine, 6, out, None, seed)
        np.testing.assert_array_equal(out, expected)


def test_named_barriers_hand_over_a_buffer(machine: str) -> None:
    expected = 1000 * np.arange(3)[:, None] + np.tile(127 - np.arange(128), 2)
    for seed in for_each_schedule(machine):
        out = np.zeros((3, 256), np.uint32)
        run_unit(machine, 7, out, None, seed)
        np.testing.assert_array_equal(out, expected)


def test_two_blocks_of_a_cluster_signal_each_other(machine: str) -> None:
    expected = np.cumsum([0, 11, 10, 11, 10, 11, 10, 11])
    for seed in for_each_schedule(machine):
        out = np.zeros(8, np.uint32)
        run_unit(machine, 8, out, None, seed)
        np.testing.assert_array_equal(out, expected)


def test_a_remote_arrival_is_recorded_for_the_block_that_sends_it() -> None:
    for seed in SEEDS:
        events = run_unit("emulator", 8, np.zeros(8, np.uint32), None, seed).events
        arrivals = events[events["kind"] == "mbarrier_arrive"]
        np.testing.assert_array_equal(arrivals["block"], np.arange(7) % 2)  # the blocks take turns
        np.testing.assert_array_equal(arrivals["address"] >> 24, 2 - np.arange(7) % 2)  # 1 + the other's rank


def test_conversions(machine: str) -> None:
    rng = np.random.default_rng(4)
    floats = np.concatenate(
        [
            rng.integers(0, 2**32, 4096, np.uint32).view(np.float32),  # any bits: subnormals, NaN, infinities
            np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00008000], np.uint32).view(
                np.float32
            ),  # ties, overflow
            np.array(
                [448, 464, 465, 480, np.inf, -np.inf, -0.0, 2**-6, 2**-10, 3 * 2**-10, 17, 19, -(2**-7), 0]
            ),
            rng.normal(size=4094) * np.exp2(rng.integers(-12, 10, 4094)),
        ]
    ).astype(np.float32)
    pairs = floats.size // 2
    out = np.zeros(256 + pairs + pairs // 2 + floats.size, np.uint32)
    run_unit(machine, 9, out, floats, columns=floats.size)
    np.testing.assert_array_equal(out[:256].view(np.float32), fp8.decode(np.arange(256, dtype=np.uint8)))
    with np.errstate(invalid="ignore"):
        expected = gemm.to_bf16(floats.astype(np.float64)).view(np.uint16)
    expected[np.isnan(floats)] = 0x7FFF
    np.testing.assert_array_equal(out[256 : 256 + pairs].view(np.uint16), expected)
    codes, inverses = np.split(out[256 + pairs :], [pairs // 2])
    np.testing.assert_array_equal(codes.view(np.uint8), fp8.encode(floats))
    normal = (np.abs(floats) > 2.0**-126) & (np.abs(floats) < 2.0**125)
    np.testing.assert_allclose(
        inverses.view(np.float32)[normal], 1 / floats[normal].astype(np.float64), rtol=2.0**-23
    )


def test_vector_stores_to_this_blocks_and_to_the_other_blocks_shared_memory(machine: str) -> None:
    first = 1000 * np.arange(2)[:, None] + 4 * np.arange(128)
    vectors = (first[..., None] + np.arange(4) / 4).astype(np.float32)  # [block, thread, 4]
    expected = np.stack([vectors, vectors[::-1]], axis=2)
    for seed in for_each_schedule(machine):
        out = np.zeros((2, 128, 2, 4), np.float32)
        run_unit(machine, 11, out, None, seed)
        np.testing.assert_array_equal(out, expected)


def test_a_relaxed_arrival_says_that_a_block_has_begun(machine: str) -> None:
    expected = np.repeat(1000 * np.array([[1], [0]]) + np.arange(128), 4, axis=1)
    for seed in for_each_schedule(machine):
        out = np.full((2, 128 * 4), np.nan, np.float32)
        run = run_unit(machine, 18, out, None, seed)
        np.testing.assert_array_equal(out, expected)
        if run is not None:
            kinds = run.events["kind"][run.events["thread"] >= 0]
            first = kinds == "cluster_pass"
            assert (kinds[: first.argmax()] == "cluster_arrive").sum() == 8, (
                "all warps arrive before one passes"
            )


def test_words_next_to_an_mbarrier_can_be_stored(machine: str) -> None:
    for seed in for_each_schedule(machine):
        out = np.full((2, 4), 99, np.uint32)
        run_unit(machine, 12, out, None, seed)
        np.testing.assert_array_equal(out, [[0, 1, 2, 3], [10, 11, 12, 13]])


def test_a_kernel_that_begins_early_waits_for_the_one_ahead(machine: str) -> None:
    for seed in for_each_schedule(machine):
        out = np.zeros((2, 128), np.uint32)
        run_unit(machine, 14, out, None, seed)
        np.testing.assert_array_equal(out, np.full((2, 128), 4000))


# ------------------------------------------------------------------------------------ the emulator alone


def test_the_same_seed_gives_the_same_run_and_others_differ() -> None:
    matrix = np.zeros((2 * BOX_ROWS, BOX_COLUMNS), np.uint8)

    def events(seed: int) -> np.ndarray:
        out = np.zeros((2, 2 * BOX), np.uint8)
        return run_unit("emulator", 2, out, matrix, seed, rows=2 * BOX_ROWS, columns=BOX_COLUMNS).events

    np.testing.assert_array_equal(events(5), events(5))
    assert len({events(seed).tobytes() for seed in SEEDS}) > 1


def test_the_events_of_a_load_are_in_order() -> None:
    matrix = np.zeros((40, 160), np.uint8)
    for seed in SEEDS:
        run = run_unit("emulator", 0, np.zeros(BOX, np.uint8), matrix, seed, rows=40, columns=160)
        kinds = [str(kind) for kind in run.events["kind"]]
        order = ["mbarrier_init", "mbarrier_expect_tx", "tma_load", "tma_load_landed", "mbarrier_phase"]
        where = [kinds.index(kind) for kind in order]
        assert where == sorted(where)
        assert kinds.count("mbarrier_pass") == 128
        assert (np.diff(run.events["step"].astype(np.int64)) >= 0).all()
        assert run.steps >= run.events["step"].max()


def test_the_number_of_os_threads_changes_nothing() -> None:
    operands = np.random.default_rng(6)
    a = fp8.per_token_cast_to_fp8(operands.standard_normal((192, 128)).astype(np.float32))
    b = fp8.per_block_cast_to_fp8(operands.standard_normal((256, 128)).astype(np.float32))
    import torch

    lhs, rhs = (
        [torch.from_numpy(x.view(np.uint8)).view(torch.float8_e4m3fn), torch.from_numpy(s)] for x, s in (a, b)
    )
    runs = []
    for threads in (1, 2, 5):
        out = torch.empty(192, 256, dtype=torch.bfloat16)
        with gl.emulator(seed=3, record=True, threads=threads) as run:
            gl.rungs["s3_wgmma"](tuple(lhs), tuple(rhs), out)
        runs.append((out.view(torch.int16).numpy().tobytes(), run.steps, run.events.tobytes()))
    assert runs[0] == runs[1] == runs[2]

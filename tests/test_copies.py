"""The copy engine on the emulator and on a GPU: boxes of one to five dimensions, and contiguous bytes."""

from __future__ import annotations

from collections.abc import Callable

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from gemm_ladder import lab
from gemm_ladder.errors import InputError
from gemm_ladder.ref import layouts
from instruction_units import check_fault, run_unit, schedules

FILE = "units_copies.cu"
SHARED = 32768 + 8
LOAD, STORE, REDUCE, MULTICAST = range(4)
ADD, MIN, MAX, INC, DEC, AND, OR, XOR = range(8)
NOTHING = np.zeros(4, np.uint8)
OF_BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.float32}


def window(array: np.ndarray, at: tuple[int, ...], box: tuple[int, ...]) -> np.ndarray:
    """The box at `at`, with zeros where it is outside the array."""
    padded = np.pad(array, [(size, size) for size in box])
    return padded[tuple(slice(size + begin, 2 * size + begin) for begin, size in zip(at, box, strict=True))]


def lying(box: np.ndarray, swizzle: int) -> np.ndarray:
    """The bytes of a box in the order in which they lie in shared memory."""
    rows = np.ascontiguousarray(box).view(np.uint8).reshape(-1, box.shape[-1] * box.itemsize)
    if not swizzle:
        return rows.reshape(-1)
    out = np.empty(rows.size, np.uint8)
    row, byte = np.indices(rows.shape)
    out[layouts.swizzle(row, byte, swizzle)] = rows
    return out


def run_box(machine, unit, array, box, at, swizzle=0, out=NOTHING, data=NOTHING, reduction=ADD, **launch):
    """`at` and `box` in the array's order."""
    map_ = lab.tensor_map(array, box, swizzle, launch.pop("element", None))
    coordinates = np.array(at[::-1], np.int32)
    size = int(np.prod(box)) * array.itemsize
    launch = {"shared_bytes": SHARED, "kernel": "boxes", **launch}
    return run_unit(machine, FILE, unit, len(box), reduction, map_, coordinates, data, out, size, **launch)


# dtype, shape, box, where, swizzle
BOXES = [
    (np.uint8, (400,), (256,), (160,), 0),
    (np.float32, (64,), (32,), (-8,), 128),
    (np.uint16, (20, 72), (8, 64), (15, 24), 128),
    (np.float64, (20, 10), (4, 8), (-2, 4), 64),
    (np.float32, (5, 6, 20), (2, 3, 8), (3, -1, 16), 32),
    (np.uint8, (5, 6, 64), (2, 3, 32), (0, 2, 16), 0),
    (np.uint16, (3, 4, 5, 40), (2, 2, 3, 32), (2, 1, -1, 16), 64),
    (np.int32, (3, 3, 4, 3, 12), (2, 1, 3, 2, 4), (1, 0, 2, 2, 8), 0),
    (np.uint16, (3, 3, 4, 3, 72), (2, 2, 2, 1, 64), (1, 2, -1, 1, 8), 128),
]
IDS = [f"{len(shape)}d-{np.dtype(dtype).name}-{swizzle}" for dtype, shape, _, _, swizzle in BOXES]


def some(dtype, shape, seed: int = 0) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.random.default_rng(seed).integers(1, 64, size, np.uint8).view(dtype).reshape(shape)


@pytest.mark.parametrize(("dtype", "shape", "box", "at", "swizzle"), BOXES, ids=IDS)
def test_load(machine: str, dtype, shape, box, at, swizzle: int) -> None:
    array = some(dtype, shape)
    expected = lying(window(array, at, box), swizzle)
    for seed in schedules(machine):
        out = np.zeros(expected.size, np.uint8)
        run_box(machine, LOAD, array, box, at, swizzle, out, seed=seed)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("dtype", "shape", "box", "at", "swizzle"), BOXES, ids=IDS)
def test_store(machine: str, dtype, shape, box, at, swizzle: int) -> None:
    at = tuple(max(begin, 0) for begin in at)  # a store may not begin before the tensor
    data = some(dtype, box, 1)
    expected = some(dtype, shape)
    inside = tuple(slice(b, min(b + n, size)) for b, n, size in zip(at, box, shape, strict=True))
    expected[inside] = data[tuple(slice(0, part.stop - part.start) for part in inside)]
    for seed in schedules(machine):
        array = some(dtype, shape)
        run_box(machine, STORE, array, box, at, swizzle, data=lying(data, swizzle), seed=seed)
        np.testing.assert_array_equal(array, expected)


# A row's bytes that are inside the tensor, in elements of 1, 2 and 4 bytes.
RAGGED = [(np.uint8, 65), (np.uint8, 79), (np.uint16, 74), (np.float32, 68), (np.float32, 76)]


def on(machine: str, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to("cuda" if machine == "gpu" else "cpu")


@pytest.mark.parametrize(("dtype", "row"), RAGGED)
def test_rows_that_end_inside_16_bytes(machine: str, dtype, row: int) -> None:
    """A load ends with the last element. A store writes the 16 bytes that hold it."""
    item = np.dtype(dtype).itemsize
    in_piece, size = 16 // item, row // item
    box, at = (4, 4 * in_piece), (1, 3 * in_piece)
    before, data = some(dtype, (6, 8 * in_piece)), some(dtype, box, 1)
    stored = before.copy()
    stored[1:5, at[1] : 5 * in_piece] = data[:, : 2 * in_piece]
    place, nothing = on(machine, np.array(at[::-1], np.int32)), on(machine, NOTHING)
    packed, launch = on(machine, lying(data, 0)), {"shared_bytes": SHARED, "kernel": "boxes"}
    for seed in schedules(machine):
        array = on(machine, before.copy().view(np.uint8)).view(OF_BYTES[item])
        out = on(machine, np.zeros(256, np.uint8))
        map_ = lab.tensor_map(array[:, :size], box)
        run_unit(machine, FILE, LOAD, 2, ADD, map_, place, nothing, out, 256, seed=seed, **launch)
        np.testing.assert_array_equal(out.cpu(), lying(window(before[:, :size], at, box), 0))
        run_unit(machine, FILE, STORE, 2, ADD, map_, place, packed, nothing, 256, seed=seed, **launch)
        np.testing.assert_array_equal(array.cpu().numpy().view(dtype), stored)


def test_the_last_row_ends_inside_16_bytes() -> None:
    """A store writes these 16 bytes whole: into the array's padding, which the last row may lack."""
    memory = np.zeros(5 * 32 + 19, np.float32)
    array = np.ndarray((6, 19), np.float32, memory, strides=(32 * 4, 4))
    message = (
        r"lane 0: TMA store writes 16 bytes at map\[5, 16\], outside map of shape 6 x 19: the last 4 of "
        r"them lie behind its end: .* ends inside these 16 bytes.*\(units_copies.cu:\d+, "
    )
    padded = np.ones((6, 32), np.float32)
    run_box("emulator", STORE, padded[:, :19], (4, 16), (2, 8), data=np.zeros(256, np.uint8))
    assert (padded[2:, 8:20] == 0).all() and (padded[:, 20:] == 1).all()
    with pytest.raises(gl.EmulatorError, match=message) as found:
        run_box("emulator", STORE, array, (4, 16), (2, 8), data=np.zeros(256, np.uint8))
    assert found.value.what == "global_out_of_bounds"


def test_multicast(machine: str) -> None:
    array, box, at = some(np.uint16, (4, 5, 40)), (2, 4, 32), (3, -1, 8)
    expected = np.tile(lying(window(array, at, box), 64), (2, 2))
    for seed in schedules(machine):
        out = np.zeros(expected.shape, np.uint8)
        run_box(machine, MULTICAST, array, box, at, 64, out, grid=2, cluster=2, seed=seed)
        np.testing.assert_array_equal(out, expected)


def bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def f32_of_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def of_bf16(operation: Callable) -> Callable:
    return lambda a, b: bf16(operation(f32_of_bf16(a), f32_of_bf16(b)))


def increment(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.where(old >= new, 0, old + 1).astype(old.dtype)


def decrement(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.where((old == 0) | (old > new), new, old - 1).astype(old.dtype)


def numbers(dtype, shape, seed: int, element: str | None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if element == "bf16":
        return bf16(rng.standard_normal(shape))
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


BOX_REDUCTIONS = [
    (ADD, np.float32, None, np.add),
    (ADD, np.float16, None, np.add),
    (ADD, np.uint16, "bf16", of_bf16(np.add)),
    (ADD, np.uint32, None, np.add),
    (MIN, np.int32, None, np.minimum),
    (MAX, np.float16, None, np.maximum),
    (MIN, np.uint16, "bf16", of_bf16(np.minimum)),
    (MAX, np.uint64, None, np.maximum),
    (INC, np.uint32, None, increment),
    (DEC, np.uint32, None, decrement),
    (AND, np.uint32, None, np.bitwise_and),
    (OR, np.uint64, None, np.bitwise_or),
    (XOR, np.uint32, None, np.bitwise_xor),
]


@pytest.mark.parametrize(("reduction", "dtype", "element", "operation"), BOX_REDUCTIONS)
def test_reduction_of_a_box(machine: str, reduction: int, dtype, element, operation: Callable) -> None:
    shape, at = (3, 5, 40), (1, 0, 16)
    box = (2, 4, 32 // np.dtype(dtype).itemsize)
    data, before = numbers(dtype, box, 1, element), numbers(dtype, shape, 2, element)
    inside = (slice(1, 3), slice(0, 4), slice(16, min(16 + box[2], 40)))
    expected = before.copy()
    expected[inside] = operation(before[inside], data[:, :, : inside[2].stop - 16])
    for seed in schedules(machine):
        array = before.copy()
        launch = {"reduction": reduction, "element": element, "seed": seed}
        run_box(machine, REDUCE, array, box, at, 32, data=lying(data, 32), **launch)
        np.testing.assert_array_equal(array, expected)


def run_bytes(machine: str, unit: int, data: np.ndarray, out: np.ndarray, size: int, **launch) -> None:
    run_unit(machine, FILE, unit, data, out, size, **{"shared_bytes": SHARED, "kernel": "bytes", **launch})


@pytest.mark.parametrize("unit", [0, 1])
@pytest.mark.parametrize("size", [16, 4112])
def test_bytes_to_and_from_shared_memory(machine: str, unit: int, size: int) -> None:
    data = some(np.uint8, (size,))
    for seed in schedules(machine):
        out = np.zeros(size + 16, np.uint8)
        run_bytes(machine, unit, data, out, size, seed=seed)
        np.testing.assert_array_equal(out[:size], data)
        assert not out[size:].any()


def test_bytes_to_both_blocks(machine: str) -> None:
    data = some(np.uint8, (4112,))
    for seed in schedules(machine):
        out = np.zeros((2, 4112), np.uint8)
        run_bytes(machine, 2, data, out, 4112, seed=seed, grid=2, cluster=2)
        np.testing.assert_array_equal(out, np.stack([data, data]))


def test_bytes_to_the_other_block(machine: str) -> None:
    data = some(np.uint8, (2, 4112))
    for seed in schedules(machine):
        out = np.zeros_like(data)
        run_bytes(machine, 3, data, out, 4112, seed=seed, grid=2, cluster=2)
        np.testing.assert_array_equal(out, data[::-1])


def test_reductions_in_the_other_block(machine: str) -> None:
    data = np.random.default_rng(0).integers(0, 2**32, (2, 1028), np.uint32)
    expected = data.sum(0, dtype=np.uint32) + np.arange(1, 1029, dtype=np.uint32)
    for seed in schedules(machine):
        out = np.zeros(1028, np.uint32)
        run_bytes(machine, 4, data, out, 4112, seed=seed, grid=2, cluster=2)
        np.testing.assert_array_equal(out, expected)


BYTE_REDUCTIONS = [
    (np.uint32, None, np.add),
    (np.int32, None, np.minimum),
    (np.uint64, None, np.maximum),
    (np.float16, None, np.add),
    (np.uint16, "bf16", of_bf16(np.add)),
    (np.uint16, "bf16", of_bf16(np.maximum)),
    (np.float32, None, np.add),
    (np.float64, None, np.add),
    (np.uint32, None, np.bitwise_xor),
    (np.uint64, None, np.bitwise_and),
    (np.uint32, None, increment),
]


@pytest.mark.parametrize("which", range(len(BYTE_REDUCTIONS)))
def test_reduction_of_bytes(machine: str, which: int) -> None:
    dtype, element, operation = BYTE_REDUCTIONS[which]
    data, before = numbers(dtype, (96,), 1, element), numbers(dtype, (96,), 2, element)
    for seed in schedules(machine):
        out = before.copy()
        run_bytes(machine, 10 + which, data, out, data.nbytes, seed=seed)
        np.testing.assert_array_equal(out, operation(before, data))


def test_rounding_of_half_precision_sums(machine: str) -> None:
    """Ties, subnormal numbers, sums that overflow, of FP16."""
    before = np.array([1, 1 + 2**-10, 2**-24, 6e-5, 65504, 65504, -65504, np.inf], np.float16)
    data = np.array([2**-11, 2**-11, 2**-24, -3e-5, 16, 15, -32, 1], np.float16)
    out = before.copy()
    run_bytes(machine, 13, data, out, 16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, before + data)


FAULTS = {
    20: ("misaligned", "cp.async.bulk between shared memory 0x408 and global memory that is 0 bytes behind"),
    21: ("misaligned", "cp.async.bulk of 24 bytes: a multiple of 16 is needed"),
    22: ("global_out_of_bounds", r"cp.async.bulk reads 16 bytes at tensor\[64, 0\], outside tensor"),
    23: ("missing_proxy_fence", "cp.async.bulk reads shared memory at 0x400 that thread 0 of block 0 wrote"),
    24: ("read_during_load", "reads (bytes that|shared memory at 0x400, which) a TMA load"),
    25: ("mbarrier_not_visible", "TMA load on mbarrier 0x4400"),
    26: ("invalid_operand", "completes bytes on an mbarrier of block 1: the two must be of one block"),
}


@pytest.mark.parametrize("which", FAULTS)
def test_faults(which: int) -> None:
    launch = {"grid": 2, "cluster": 2} if which == 26 else {}
    check_fault(which, *FAULTS[which], **launch)


@pytest.mark.parametrize(
    ("unit", "array", "box", "at", "what", "message"),
    [
        (LOAD, np.zeros((4, 4, 16), np.float32), (2, 2, 8), (0, 0, 2), "misaligned", "at column 2, byte 8"),
        (
            STORE,
            np.zeros((4, 4, 16), np.float32),
            (2, 2, 8),
            (0, -1, 0),
            "invalid_operand",
            "-1 in dimension 1",
        ),
        (REDUCE, np.zeros((4, 4, 16), np.uint8), (2, 2, 16), (0, 0, 0), "invalid_operand", "for u8 elements"),
    ],
)
def test_boxes_that_are_refused(unit, array, box, at, what, message) -> None:
    with pytest.raises(gl.EmulatorError, match=message) as error:
        run_box("emulator", unit, array, box, at, out=np.zeros(4096, np.uint8), data=np.zeros(4096, np.uint8))
    assert error.value.what == what


def test_a_map_of_another_number_of_dimensions() -> None:
    array = np.zeros((4, 4, 16), np.float32)
    map_ = lab.tensor_map(array, (2, 2, 8))
    out, at = np.zeros(4096, np.uint8), np.zeros(5, np.int32)
    with pytest.raises(gl.EmulatorError, match="with 2 coordinates, and a tensor map of 3 dimensions"):
        args = (LOAD, 2, ADD, map_, at, NOTHING, out, 128)
        run_unit("emulator", FILE, *args, kernel="boxes", shared_bytes=SHARED)


@pytest.mark.parametrize(
    ("array", "box", "swizzle", "element", "message"),
    [
        (np.zeros((2,) * 6), (1,) * 6, 0, None, "one to five dimensions"),
        (np.zeros((16, 16))[:, ::2], (2, 2), 0, None, "one to five dimensions"),
        (np.zeros((16, 16), np.complex64), (2, 2), 0, None, "dtype complex64"),
        (
            np.zeros((16, 16), np.float32),
            (2, 2),
            0,
            "bf16",
            "element is 'bf16' and the array's dtype float32",
        ),
        (np.zeros((16, 16), np.float32), (2,), 0, None, "2 dimensions is needed"),
        (np.zeros((16, 16), np.float32), (2, 2), 16, None, "swizzle is 16"),
    ],
)
def test_arrays_that_have_no_map(array, box, swizzle, element, message) -> None:
    with pytest.raises(InputError, match=message):
        lab.tensor_map(array, box, swizzle, element)


@pytest.mark.parametrize(
    ("array", "box", "swizzle", "message"),
    [
        (np.zeros((4, 3, 6), np.float32), (1, 1, 4), 0, "stride of dimension 1 of 24 bytes"),
        (np.zeros((4, 4, 8), np.float32), (1, 1, 3), 0, "a box row of 12 bytes"),
        (np.zeros((4, 4, 16), np.float32), (1, 1, 16), 32, "a 32-byte-swizzled box row has 64 bytes"),
        (np.zeros((512, 4, 8), np.float32), (300, 1, 4), 0, "a box is 1 to 256 elements"),
    ],
)
def test_maps_that_the_driver_refuses(array, box, swizzle, message) -> None:
    with pytest.raises(InputError, match=message):
        run_box("emulator", LOAD, array, box, (0, 0, 0), swizzle, np.zeros(65536, np.uint8))

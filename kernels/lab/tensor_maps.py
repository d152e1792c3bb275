"""Tensor maps of arrays: what a kernel gives the copy engine."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemm_ladder.errors import InputError
from gemm_ladder.lab.arrays import dtype_name, item_bytes, on_gpu, pointer, strides

if TYPE_CHECKING:
    from gemm_ladder.lab.arrays import Array


# The elements of a tensor map, by their numbers in include/copy_types.cuh (enum class Element).
ELEMENTS = ("u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f64", "bf16")
_OF_DTYPE = {
    **{name: "u8" for name in ("uint8", "int8", "bool")},
    **{"uint16": "u16", "int16": "u16", "float16": "f16", "bfloat16": "bf16"},
    **{"uint32": "u32", "int32": "s32", "float32": "f32"},
    **{"uint64": "u64", "int64": "s64", "float64": "f64"},
}
_BYTES = dict(zip(ELEMENTS, (1, 2, 4, 4, 8, 8, 2, 4, 8, 2), strict=True))
_MOST = 5  # dimensions


class Tensor(ctypes.Structure):
    """struct LabTensor of include/lab.cuh"""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("size", ctypes.c_int64 * _MOST),
        ("stride", ctypes.c_int64 * _MOST),
        ("box", ctypes.c_uint32 * _MOST),
        ("rank", ctypes.c_int32),
        ("element", ctypes.c_int32),
        ("swizzle", ctypes.c_int32),
    )


@dataclass(frozen=True)
class TensorMap:
    """A kernel's argument `const __grid_constant__ TensorMap`: an array, moved in boxes.

    Attributes:
        array: one to five dimensions, elements of the last one side by side.
        box: elements of a box along each dimension, in the array's order.
        swizzle: how TMA permutes a box's 16-byte pieces in shared memory: 0, 32, 64 or 128 bytes.
        element: one of ELEMENTS.
    """

    array: Array
    box: tuple[int, ...]
    swizzle: int
    element: str

    def encode(self, library: ctypes.CDLL, size: int, array: Array) -> Any:
        """The bytes of the map, for the array `array` in place of its own (a copy on a GPU).

        Raises InputError where the CUDA driver, or the emulator in its place, refuses.
        """
        tensor = Tensor(
            base=pointer(array),
            size=tuple(reversed(array.shape)),
            stride=tuple(reversed(strides(array))),
            box=tuple(reversed(self.box)),
            rank=len(self.box),
            element=ELEMENTS.index(self.element),
            swizzle=self.swizzle,
        )
        # A tensor map lies at a multiple of 64 bytes.
        memory = ctypes.create_string_buffer(size + 64)
        begin = ctypes.addressof(memory)
        encoded = (ctypes.c_char * size).from_buffer(memory, -begin % 64)
        library.gemm_ladder_tensor_map.restype = ctypes.c_char_p
        said = library.gemm_ladder_tensor_map(ctypes.byref(encoded), ctypes.byref(tensor))
        if said is not None:
            shape = " x ".join(map(str, array.shape))
            raise InputError(f"The tensor map of an array of shape {shape}: {said.decode()}.")
        return encoded


def tensor_map(array: Array, box: Sequence[int], swizzle: int = 0, element: str | None = None) -> TensorMap:
    """Describe an array to the copy engine; give the result to `run` in the place of the kernel's parameter.

    A kernel gives coordinates in the opposite order: the last dimension first.

    Args:
        array: NumPy array or torch tensor of one to five dimensions, the elements of the last one side by
            side. Its begin and its other strides are multiples of 16 bytes.
        box: what one instruction moves: elements along each dimension, at most 256 of each.
        swizzle: 0, 32, 64 or 128 bytes.
        element: what the copy engine takes the elements for, which matters to reductions: "u8", "u16",
            "u32", "s32", "u64", "s64", "f16", "f32", "f64" or "bf16", of as many bytes as the array's. None:
            what the array's dtype says; an FP8 dtype is "u8".

    Raises:
        InputError: another kind of array, box, swizzle or element.
    """
    shape = tuple(array.shape)
    if not 1 <= len(shape) <= _MOST or (shape[-1] > 1 and strides(array)[-1] != 1):
        raise InputError(
            f"array has shape {shape} and strides {strides(array)}; one to five dimensions, with the "
            "elements of the last one side by side, are needed."
        )
    dtype = dtype_name(array)
    known = _OF_DTYPE.get(dtype, "u8" if dtype.startswith("float8") else None)
    if known is None:
        raise InputError(f"array is of dtype {dtype}; one of {', '.join(_OF_DTYPE)} or FP8 is needed.")
    element = element or known
    if element not in ELEMENTS or _BYTES[element] != item_bytes(array):
        raise InputError(
            f"element is {element!r} and the array's dtype {dtype}; one of {', '.join(ELEMENTS)}, of "
            f"{item_bytes(array)} bytes, is needed."
        )
    if len(box) != len(shape):
        raise InputError(
            f"box is {tuple(box)}; a size for each of the array's {len(shape)} dimensions is needed."
        )
    if swizzle not in (0, 32, 64, 128):
        raise InputError(f"swizzle is {swizzle!r}; 0, 32, 64 or 128 bytes are needed.")
    return TensorMap(array, tuple(int(size) for size in box), swizzle, element)


def is_on_gpu(map_: TensorMap) -> bool:
    return on_gpu(map_.array)

"""The arguments of a kernel: what its parameters are, and the values that Python gives it."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gemm_ladder.errors import InputError
from gemm_ladder.lab.arrays import dtype_name, is_array, item_bytes, pointer
from gemm_ladder.lab.tensor_maps import TensorMap


class _Parameter(ctypes.Structure):
    """struct lab::Parameter of include/lab.cuh"""

    _fields_ = (
        ("kind", ctypes.c_char_p),
        ("bytes", ctypes.c_int64),
        ("item", ctypes.c_char_p),
        ("item_bytes", ctypes.c_int64),
    )


class _Kind(NamedTuple):
    """What a parameter is: lab::Parameter, as Python has it."""

    kind: str
    bytes: int
    item: str
    item_bytes: int


@dataclass
class Moved:
    """A tensor map whose array is a copy on a GPU."""

    map: TensorMap
    array: Any


def holds_array(value: Any) -> bool:
    return isinstance(value, TensorMap) or is_array(value)


@functools.cache
def parameters_of(library: ctypes.CDLL) -> tuple[_Kind, ...]:
    """What each of the kernel's parameters is."""
    function = library.gemm_ladder_parameter
    function.restype, function.argtypes = _Parameter, [ctypes.c_int64]

    def each() -> Iterator[_Kind]:
        index = 0
        while (found := function(index)).kind is not None:
            yield _Kind(found.kind.decode(), found.bytes, found.item.decode(), found.item_bytes)
            index += 1

    return tuple(each())


def packed(value: Any, name: str, parameter: _Kind, library: ctypes.CDLL) -> Any:
    """The value of one parameter as ctypes holds it. Raises InputError where it does not suit."""
    kind, size = parameter.kind, parameter.bytes
    needed = {
        "tensor map": "a lab.tensor_map(...)",
        "pointer": "an array, or None for a null pointer,",
        "float": "a number",
        "bool": "a bool",
        "signed": "an integer",
        "unsigned": "an integer that is not negative",
        "struct": f"a ctypes structure of {size} bytes",
    }[kind]
    refusal = InputError(f"{name} is {described(value)}; {needed} is needed.")
    if kind == "tensor map":
        moved = value if isinstance(value, Moved) else Moved(value, getattr(value, "array", None))
        if not isinstance(moved.map, TensorMap):
            raise refusal
        return moved.map.encode(library, size, moved.array)
    if kind == "pointer":
        if value is None or is_array(value):
            _check_dtype(value, name, parameter)
            return ctypes.c_void_p(None if value is None else pointer(value))
        raise refusal
    if kind == "struct":
        if not isinstance(value, ctypes.Structure) or ctypes.sizeof(value) != size:
            raise refusal
        return value
    if (is_array(value) and np.prod(value.shape, dtype=int) != 1) or isinstance(
        value, (str, bytes, TensorMap)
    ):
        raise refusal
    try:
        if kind == "float":
            return (ctypes.c_float if size == 4 else ctypes.c_double)(float(value))
        number = int(value)
        if number != value:
            raise refusal
    except (TypeError, ValueError):
        raise refusal from None
    low = -(2 ** (8 * size - 1)) if kind == "signed" else 0
    high = 2 ** (8 * size - (kind == "signed")) if kind != "bool" else 2
    if not low <= number < high:
        raise InputError(f"{name} is {number}; an integer from {low} to {high - 1} is needed.")
    return (ctypes.c_char * size).from_buffer_copy(
        number.to_bytes(size, sys.byteorder, signed=kind == "signed")
    )


def _check_dtype(value: Any, name: str, parameter: _Kind) -> None:
    """Raise InputError for an array whose elements are not what the kernel's pointer points to.

    A pointer to bytes takes any elements, one to larger unsigned integers any elements of that size, and
    every pointer unsigned integers of its size, because BF16 and FP8 are often passed as bits. What a pointer
    to void, to a vector or to another struct points to is not known.
    """
    if value is None or not parameter.item or (parameter.item == "unsigned" and parameter.item_bytes == 1):
        return
    dtype, bits = dtype_name(value), 8 * parameter.item_bytes
    needed = {
        "float": (f"float{bits}", f"uint{bits}"),
        "signed": (f"int{bits}", f"uint{bits}", *(["bool"] if bits == 8 else [])),
        "unsigned": (f"uint{bits}", dtype) if item_bytes(value) == parameter.item_bytes else (f"uint{bits}",),
    }.get(parameter.item, (parameter.item, f"uint{bits}"))
    if dtype not in needed:
        other = f", or another dtype of {bits} bits," if parameter.item == "unsigned" else ""
        raise InputError(f"{name} is {dtype}; {needed[0]}{other} is needed.")


def described(value: Any) -> str:
    return f"an array of shape {tuple(value.shape)}" if is_array(value) else repr(value)

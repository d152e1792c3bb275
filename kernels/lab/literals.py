"""A kernel's arguments as words of a command line.

128, 1.5, null                      numbers, and a null pointer
float32[64,64]=normal               an array, filled in one of the ways listed below, with one number, with as
int32[4]=3,1,2,7                    many numbers as it has elements, or from a file: @FILE.npy
map:0:64x128:128B                   a tensor map of the array that is argument 0 (the first), with boxes of 64
map:e4m3[64,128]=normal:64x128      rows and 128 columns and a swizzle of 128 bytes (default: none); or of an
                                    array that is no argument itself
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from gemm_ladder.errors import InputError
from gemm_ladder.lab.tensor_maps import tensor_map

DTYPES: dict[str, np.dtype[Any]] = {
    **{
        name: np.dtype(name)
        for name in (
            *("float64", "float32", "float16", "bool"),
            *(f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u")),
        )
    },
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
FILLS = {
    "normal": "normal numbers, scaled to the range of an FP8 type; of integers, -8 to 8",
    "uniform": "from 0 to 1",
    "arange": "0, 1, 2, ...",
    "nan": "NaN, to see what is written",
}
MAX_BYTES = 1 << 34
_ARRAY = re.compile(r"(\w+)\[([^\]]*)\]=(.*)", re.S)
_MAP = re.compile(r"map:(.+?):(\d+)x(\d+)(?::(\d+)B)?", re.S)


@dataclass(frozen=True)
class Given:
    """Arguments for `lab.run`.

    Attributes:
        values: one for each parameter: numbers, arrays, tensor maps, None.
        arrays: by the argument's index and word, in order, each array with the type that the word says, in
            the same memory.
    """

    values: list[Any]
    arrays: dict[str, np.ndarray]


def parse(words: list[str], seed: int = 0, as_bits: bool = False) -> Given:
    """The arguments that words stand for.

    Args:
        seed: of the random numbers.
        as_bits: arrays are of unsigned integers as wide as their elements, because torch, and with it a GPU,
            takes no other array of a type of ml_dtypes.

    Raises:
        InputError: a word cannot be understood, or says what cannot be.
    """
    arrays: dict[str, np.ndarray] = {}
    by_index: dict[int, np.ndarray] = {}
    values: list[Any] = [None] * len(words)
    rng = np.random.default_rng(seed)

    def made(word: str, index: int) -> np.ndarray:
        found = arrays[f"{index}: {word}"] = _array(word, rng)
        return found.view(f"u{found.itemsize}") if as_bits else found

    for index, word in enumerate(words):
        if word.startswith("map:"):
            continue
        if _ARRAY.fullmatch(word):
            values[index] = by_index[index] = made(word, index)
        elif word != "null":
            values[index] = _number(word)
    for index, word in enumerate(words):
        if not word.startswith("map:"):
            continue
        parts = _MAP.fullmatch(word)
        if not parts:
            raise InputError(
                f"{word!r} is not a tensor map; map:ARRAY:ROWSxCOLUMNS or map:ARRAY:ROWSxCOLUMNS:SWIZZLE is "
                "needed, as in map:0:64x128:128B."
            )
        of, rows, columns, swizzle = parts.groups()
        if of.isdigit():
            if int(of) not in by_index:
                raise InputError(f"{word!r} is of argument {of}, which is no array; one that is is needed.")
            array = by_index[int(of)]
        else:
            array = made(of, index)
        values[index] = tensor_map(array, (int(rows), int(columns)), int(swizzle or 0))
    return Given(values, dict(sorted(arrays.items(), key=lambda item: int(item[0].partition(":")[0]))))


def _number(word: str) -> int | float:
    for kind in (lambda text: int(text, 0), float):
        try:
            return kind(word)
        except ValueError:
            continue
    raise InputError(
        f"{word!r} is not an argument; a number, null, an array such as float32[64,64]=normal, or a tensor "
        "map such as map:0:64x128:128B is needed."
    )


def _array(word: str, rng: np.random.Generator) -> np.ndarray:
    parts = _ARRAY.fullmatch(word)
    if not parts:
        raise InputError(
            f"{word!r} is not an array; TYPE[SIZES]=FILL is needed, as in float32[64,64]=normal."
        )
    name, sizes, fill = parts.groups()
    if name not in DTYPES:
        raise InputError(f"{word!r} has the type {name!r}; one of {', '.join(DTYPES)} is needed.")
    shape = [size.strip() for size in sizes.split(",")]
    if not all(size.isascii() and size.isdigit() and 0 < int(size) < 2**40 for size in shape):
        raise InputError(f"{word!r} has the sizes [{sizes}]; positive numbers are needed, as in [64,128].")
    dims, dtype = tuple(map(int, shape)), DTYPES[name]
    if math.prod(dims) * dtype.itemsize > MAX_BYTES:
        raise InputError(f"{word!r} has more than {MAX_BYTES:.2g} bytes; a smaller array is needed.")
    if fill.startswith("@"):
        return _loaded(word, fill[1:], dims, dtype)
    if fill in FILLS:
        return _filled(word, fill, dims, dtype, rng)
    numbers = [_element(word, text, dtype) for text in fill.split(",")]
    if len(numbers) == 1:
        return np.full(dims, numbers[0], dtype)
    if len(numbers) != math.prod(dims):
        raise InputError(
            f"{word!r} has {len(numbers)} numbers for {math.prod(dims)} elements; as many or one are needed."
        )
    return np.array(numbers).reshape(dims).astype(dtype)


def _is_integer(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu"


def _element(word: str, text: str, dtype: np.dtype[Any]) -> int | float:
    try:
        number = int(text, 0) if _is_integer(dtype) else float(text)
    except ValueError:
        kind = "an integer" if _is_integer(dtype) else "a number"
        raise InputError(
            f"{word!r} is filled with {text!r}; {kind}, or one of {', '.join(FILLS)} or @FILE.npy, is needed."
        ) from None
    if _is_integer(dtype) and not np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
        raise InputError(
            f"{word!r} is filled with {text}; {np.iinfo(dtype).min} to {np.iinfo(dtype).max} is needed."
        )
    return number


def _filled(
    word: str, fill: str, shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator
) -> np.ndarray:
    if fill == "arange":
        return np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    if _is_integer(dtype) or dtype.kind == "b":
        if fill != "normal":
            raise InputError(f"{word!r} is filled with {fill}; a floating-point type is needed for that.")
        low = -8 if dtype.kind == "i" else 0
        return rng.integers(low, 9, shape).astype(dtype)
    if fill == "nan":
        return np.full(shape, np.nan, dtype)
    if fill == "uniform":
        return rng.uniform(size=shape).astype(dtype)
    limit = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    scale = limit / 4 if dtype.itemsize == 1 else 1.0
    return np.clip(rng.normal(scale=scale, size=shape), -limit, limit).astype(dtype)


def _loaded(word: str, file: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    try:
        found = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{word!r}: {file} cannot be read as a .npy file ({error}).") from None
    if not isinstance(found, np.ndarray) or found.shape != shape:
        what = f"an array of shape {found.shape}" if isinstance(found, np.ndarray) else "several arrays"
        raise InputError(f"{word!r}: {file} has {what}; one of shape {shape} is needed.")
    if found.dtype.itemsize == dtype.itemsize and found.dtype.kind == "u" and dtype.kind not in "iu":
        return np.ascontiguousarray(found).view(dtype)  # bits, in an integer type of the same size
    return np.ascontiguousarray(found.astype(dtype))

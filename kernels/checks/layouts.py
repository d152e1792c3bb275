"""Which tensors each layout has, their dtypes and dimensions, and the sizes that these need."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from gemm_ladder.arguments import K_MULTIPLE, MAX_SIZE, N_MULTIPLE, SCALE_BLOCK, Kind, ceil_div
from gemm_ladder.checks import rules
from gemm_ladder.errors import InputError

# The tensor that says which rows belong to a group.
ROWS: dict[Kind, str] = {"contiguous": "m_indices", "masked": "masked_m", "psum": "grouped_layout"}
SCALES = ("sfa", "sfb")
DTYPES = {
    **dict.fromkeys(("A", "B"), torch.float8_e4m3fn),
    **dict.fromkeys(SCALES, torch.float32),
    **dict.fromkeys(ROWS.values(), torch.int32),
    "out": torch.bfloat16,
}
DIMENSIONS: dict[Kind, dict[str, tuple[str, ...]]] = {  # dimensions of one name have one size
    "dense": {
        **{"A": ("m", "k"), "sfa": ("m", "ceil(k / 128)")},
        **{"B": ("n", "k"), "sfb": ("ceil(n / 128)", "ceil(k / 128)")},
        **{"out": ("m", "n")},
    },
    "contiguous": {
        **{"A": ("m", "k"), "sfa": ("m", "ceil(k / 128)")},
        **{"B": ("groups", "n", "k"), "sfb": ("groups", "ceil(n / 128)", "ceil(k / 128)")},
        **{"out": ("m", "n"), "m_indices": ("m",)},
    },
    "psum": {
        **{"A": ("m", "k"), "sfa": ("m", "ceil(k / 128)")},
        **{"B": ("groups", "n", "k"), "sfb": ("groups", "ceil(n / 128)", "ceil(k / 128)")},
        **{"out": ("m", "n"), "grouped_layout": ("groups",)},
    },
    "masked": {
        **{"A": ("groups", "max_m", "k"), "sfa": ("groups", "max_m", "ceil(k / 128)")},
        **{"B": ("groups", "n", "k"), "sfb": ("groups", "ceil(n / 128)", "ceil(k / 128)")},
        **{"out": ("groups", "max_m", "n"), "masked_m": ("groups",)},
    },
}


def supported(kind: Kind, size: Mapping[str, int]) -> None:
    """Refuse sizes, by the names of the layout's dimensions, that the kernels do not multiply.

    Raises:
        InputError: n is not a multiple of 8, k not of 16, or a tensor has 2^31 rows or columns.
    """
    for name, multiple in (("n", N_MULTIPLE), ("k", K_MULTIPLE)):
        if size[name] % multiple:
            raise InputError(f"{name} is {size[name]}; a multiple of {multiple} is needed")
    for tensor in ("A", "B"):
        *rows, k = DIMENSIONS[kind][tensor]
        for names in (rows, [k]):
            if (product := math.prod(size[name] for name in names)) > MAX_SIZE:
                raise InputError(f"{' * '.join(names)} is {product}; less than 2^31 is needed")


def agreeing_sizes(kind: Kind, given: Mapping[str, torch.Tensor], least: int) -> dict[str, int]:
    """The size of each dimension by its name, after checking that all tensors' shapes agree, and that n and k
    are at least `least`."""
    dimensions = DIMENSIONS[kind]
    of_a = dict(zip(dimensions["A"], rules.sizes("A", given["A"], *dimensions["A"]), strict=True))
    size = dict(zip(dimensions["B"], rules.sizes("B", given["B"], *dimensions["B"]), strict=True)) | of_a
    n, k = size["n"], size["k"]
    if n < least or k < least:
        rows = dimensions["A"][-2]
        raise InputError(f"n is {n} and k is {k}; both must be at least 1 (only {rows} may be 0)")
    if size.get("groups") == 0:
        raise InputError("B has 0 groups; at least 1 is needed")
    for name in ("B", *given):
        needed = needed_shape(name, kind, size)
        if given[name].shape != needed:
            rules.shape(name, given[name], needed, _meaning(name, kind, size))
    return size


def _meaning(name: str, kind: Kind, size: Mapping[str, int]) -> str:
    """Where the sizes that the tensor `name` needs come from, for `shape`."""
    of_a, dimensions = DIMENSIONS[kind]["A"], DIMENSIONS[kind][name]
    named = [of for of in dimensions if of in of_a] if name == "B" else map(_without_blocks, dimensions)
    values = ", ".join(f"{of} = {size[of]}" for of in named)
    whose = "with A's" if name == "B" else "for"
    return f"[{', '.join(dimensions)}] {whose} {values}"


def needed_shape(name: str, kind: Kind, size: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of the tensor `name`, given the sizes of the dimensions by their names."""
    return tuple(
        size[of] if of in size else ceil_div(size[_without_blocks(of)], SCALE_BLOCK)
        for of in DIMENSIONS[kind][name]
    )


@functools.cache
def _without_blocks(dimension: str) -> str:
    """The dimension that a name counts blocks of, such as "k" for "ceil(k / 128)"; else the name itself."""
    return dimension.removeprefix("ceil(").removesuffix(f" / {SCALE_BLOCK})")

"""What a call accepts, checked before anything runs.

Only metadata is looked at (device, dtype, shape, stride, address), never contents: a check costs no kernel
and no synchronisation. Every refusal is one sentence, what was given and what is needed, and comes before
`out` is written.

    A    float8_e4m3fn [m, k], contiguous, 16-byte aligned
    sfa  float32 [m, ceil(k / 128)], "MN-major, TMA-aligned": stride (1, align(m, 4)), 16-byte aligned.
         Any other stride or address, and a lazily negated view (Tensor.is_neg), is accepted and converted,
         which costs a copy kernel.
    B    float8_e4m3fn [n, k], contiguous, 16-byte aligned
    sfb  float32 [ceil(n / 128), ceil(k / 128)], contiguous, 16-byte aligned. Any other alignment, transposed
         and lazily negated ones are converted
    out  bfloat16 [m, n], contiguous, 16-byte aligned, sharing no byte with the others

The grouped layouts put a dimension `groups` before B's and sfb's, and have one tensor more:

    contiguous  m_indices int32 [m], contiguous: the group of each row
    masked      masked_m int32 [groups], contiguous: how many rows of each group count; A, sfa and out are
                [groups, max_m, ...], sfa's stride (align(max_m, 4) * ceil(k / 128), 1, align(max_m, 4))

No gradient flows through a call: inputs that require grad are taken as they are, such an `out` is refused.
All on one device: the CPU or a Hopper GPU.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from gemm_ladder.errors import InputError

BLOCK = 128  # of K (both operands' scales) and of N (B's): what one scale covers
ALIGNMENT = 16  # bytes: what TMA asks of an address and of a stride
ROW_GROUPS = ("m_indices", "masked_m")
DTYPES = {
    **dict.fromkeys(("A", "B"), torch.float8_e4m3fn),
    **dict.fromkeys(("sfa", "sfb"), torch.float32),
    **dict.fromkeys(ROW_GROUPS, torch.int32),
    "out": torch.bfloat16,
}
DIMENSIONS = {  # by layout and tensor; equal names are equal sizes
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
    "masked": {
        **{"A": ("groups", "max_m", "k"), "sfa": ("groups", "max_m", "ceil(k / 128)")},
        **{"B": ("groups", "n", "k"), "sfb": ("groups", "ceil(n / 128)", "ceil(k / 128)")},
        **{"out": ("groups", "max_m", "n"), "masked_m": ("groups",)},
    },
}


class Gemm(NamedTuple):
    """A call that passed: its tensors, the scales in the layouts that kernels read, and its sizes."""

    a: torch.Tensor
    sfa: torch.Tensor
    b: torch.Tensor
    sfb: torch.Tensor
    out: torch.Tensor
    m: int
    n: int
    k: int


class GroupedGemm(NamedTuple):
    """A grouped call that passed. `rows` is m_indices or masked_m, m the sizes' m or max_m."""

    a: torch.Tensor
    sfa: torch.Tensor
    b: torch.Tensor
    sfb: torch.Tensor
    out: torch.Tensor
    rows: torch.Tensor
    m: int
    n: int
    k: int
    groups: int


def dense(lhs: object, rhs: object, out: object, *, hopper: bool = True) -> Gemm:
    """Check the operands of `out = lhs @ rhs.T` (module docstring).

    Args:
        lhs: the pair (A, sfa).
        rhs: the pair (B, sfb).
        out: the output.
        hopper: refuse a GPU that is not Hopper.

    Returns:
        The tensors with the scales converted where they had to be. m may be 0.

    Raises:
        InputError: the first thing found wrong.
    """
    tensors, size = _checked("dense", lhs, rhs, {"out": out}, hopper)
    return Gemm(*tensors, size["m"], size["n"], size["k"])


def contiguous_groups(lhs: object, rhs: object, out: object, m_indices: object) -> GroupedGemm:
    """As `dense`, for the rows of all groups in one A: out[i] = lhs[i] @ rhs[m_indices[i]].T."""
    tensors, size = _checked("contiguous", lhs, rhs, {"out": out, "m_indices": m_indices})
    return GroupedGemm(*tensors, size["m"], size["n"], size["k"], size["groups"])


def masked_groups(lhs: object, rhs: object, out: object, masked_m: object) -> GroupedGemm:
    """As `dense`, for each group's first rows: out[g, :r] = lhs[g, :r] @ rhs[g].T with r = masked_m[g]."""
    tensors, size = _checked("masked", lhs, rhs, {"out": out, "masked_m": masked_m})
    return GroupedGemm(*tensors, size["max_m"], size["n"], size["k"], size["groups"])


def _checked(
    layout: str, lhs: object, rhs: object, others: Mapping[str, object], hopper: bool = True
) -> tuple[list[torch.Tensor], dict[str, int]]:
    """Check a call; `others` are the output and what tells the groups of rows.

    Returns:
        All tensors, as kernels read them, and the size of each dimension by its name.
    """
    a, sfa = pair(lhs, "lhs", "(A, sfa)")
    b, sfb = pair(rhs, "rhs", "(B, sfb)")
    named = {"A": a, "sfa": sfa, "B": b, "sfb": sfb, **others}
    device = same_device(named)
    if hopper:
        runs_on(device)

    for name, tensor in named.items():
        dtype(name, tensor, DTYPES[name])

    dimensions = DIMENSIONS[layout]
    of_a = dict(zip(dimensions["A"], sizes("A", a, *dimensions["A"]), strict=True))
    size = dict(zip(dimensions["B"], sizes("B", b, *dimensions["B"]), strict=True)) | of_a
    n, k = size["n"], size["k"]
    if n < 1 or k < 1:
        rows = dimensions["A"][-2]
        raise InputError(f"n is {n} and k is {k}; both must be at least 1 (only {rows} may be 0)")
    if size.get("groups") == 0:
        raise InputError("B has 0 groups; at least 1 is needed")
    common = ", ".join(f"{of} = {of_a[of]}" for of in dimensions["B"] if of in of_a)
    shape("B", b, needed_shape("B", layout, size), f"[{', '.join(dimensions['B'])}] with A's {common}")
    for name in ("sfa", "sfb", *others):
        values = ", ".join(f"{of} = {size[of]}" for of in map(_without_blocks, dimensions[name]))
        meaning = f"[{', '.join(dimensions[name])}] for {values}"
        shape(name, named[name], needed_shape(name, layout, size), meaning)

    for name in ("A", "B", *others):
        contiguous(name, named[name])
        if name not in ROW_GROUPS:
            aligned(name, named[name])
        in_memory(name, named[name])
    sfb_strides(sfb)
    disjoint("out", named)
    if named["out"].requires_grad:
        raise InputError("out requires grad, which no kernel computes; a tensor that does not is needed")
    sfa, sfb = sfa.detach().resolve_neg(), sfb.detach().resolve_neg()
    return [a.detach(), mn_major(sfa), b.detach(), row_major(sfb), *others.values()], size


def needed_shape(name: str, layout: str, size: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of the tensor `name` in a layout, given the sizes of the dimensions by their names."""
    return tuple(
        size[of] if of in size else ceil_div(size[_without_blocks(of)], BLOCK)
        for of in DIMENSIONS[layout][name]
    )


def _without_blocks(dimension: str) -> str:
    """ "k" of "ceil(k / 128)"; other names as they are."""
    return dimension.removeprefix("ceil(").removesuffix(f" / {BLOCK})")


def pair(value: object, name: str, parts: str) -> tuple[object, object]:
    """`value` as two things; `parts` says which, e.g. "(A, sfa)"."""
    if not isinstance(value, (tuple, list)):
        raise InputError(f"{name} is of type {type(value).__name__}; the pair {parts} is needed")
    if len(value) != 2:
        raise InputError(f"{name} has {len(value)} elements; the pair {parts} is needed")
    return value[0], value[1]


def same_device(named: Mapping[str, object]) -> torch.device:
    """The one device on which all of them are: all are tensors, on the CPU or on one CUDA device."""
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{name} is of type {type(tensor).__name__}; a torch.Tensor is needed")
        if tensor.layout != torch.strided:
            raise InputError(f"{name} has layout {tensor.layout}; a dense tensor (torch.strided) is needed")
    (first, tensor), *others = named.items()
    device = tensor.device
    for name, tensor in others:
        if tensor.device != device:
            raise InputError(
                f"{first} is on {device} and {name} on {tensor.device}; one device is needed for all"
            )
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"the tensors are on {device}; the CPU or a CUDA device is needed")
    return device


@functools.cache
def runs_on(device: torch.device) -> None:
    """Refuse a GPU that cannot run code for sm_90a."""
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) != (9, 0):
        raise InputError(
            f"{device} is a {torch.cuda.get_device_name(device)}, "
            f"compute capability {capability[0]}.{capability[1]}; "
            "a Hopper GPU (compute capability 9.0) is needed, or tensors on the CPU for the emulator"
        )


def dtype(name: str, tensor: torch.Tensor, needed: torch.dtype) -> None:
    if tensor.dtype != needed:
        raise InputError(f"{name} is {_short(tensor.dtype)}; {_short(needed)} is needed")


def sizes(name: str, tensor: torch.Tensor, *dimensions: str) -> tuple[int, ...]:
    """The sizes of a tensor that needs exactly these dimensions."""
    if tensor.dim() != len(dimensions):
        needed = ", ".join(dimensions)
        raise InputError(
            f"{name} has shape {list(tensor.shape)}; {len(dimensions)} dimensions, [{needed}], are needed"
        )
    return tuple(tensor.shape)


def shape(name: str, tensor: torch.Tensor, needed: tuple[int, ...], meaning: str) -> None:
    """`meaning` says where the needed sizes come from."""
    if tensor.shape != needed:
        raise InputError(f"{name} has shape {list(tensor.shape)}; {list(needed)} is needed: {meaning}")


def contiguous(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        needed = row_major_strides(tensor.shape)
        raise InputError(
            f"{name} has strides {tensor.stride()}; contiguous rows, strides {needed}, are needed"
        )


def aligned(name: str, tensor: torch.Tensor) -> None:
    if tensor.numel() and tensor.data_ptr() % ALIGNMENT:
        raise InputError(
            f"{name} starts at address {tensor.data_ptr():#x}; a multiple of {ALIGNMENT} bytes is needed"
        )


def in_memory(name: str, tensor: torch.Tensor) -> None:
    """Refuse torch's lazy negation: a view whose numbers are those in memory with the sign changed."""
    if tensor.is_neg():
        raise InputError(f"{name} is a lazily negated view; the numbers themselves (resolve_neg) are needed")


def sfb_strides(sfb: torch.Tensor) -> None:
    if not (sfb.is_contiguous() or sfb.mT.is_contiguous()):
        rows, columns = row_major_strides(sfb.shape), row_major_strides(sfb.mT.shape)
        transposed = (*columns[:-2], columns[-1], columns[-2])
        raise InputError(f"sfb has strides {sfb.stride()}; {rows} or, transposed, {transposed} is needed")


def disjoint(output: str, named: Mapping[str, torch.Tensor]) -> None:
    """Refuse an output that shares memory with an input: that reaches in between its first and its last byte,
    be it into a hole that the input's strides leave."""
    begin, end = _span(named[output])
    for name, tensor in named.items():
        if name == output:
            continue
        first, last = _span(tensor)
        if max(begin, first) < min(end, last):
            raise InputError(f"{output} shares memory with {name}; memory of its own is needed")


def mn_major(sfa: torch.Tensor) -> torch.Tensor:
    """A's scales, [(groups,) mn, k / 128], as TMA reads them: stride (aligned * k / 128, 1, aligned) with
    aligned = mn rounded up to 4 floats. The tensor itself where it is so already, else a copy.

    The padding, and the strides of dimensions of size 1, are left as they come.
    """
    strides = mn_major_strides(sfa.shape)
    if sfa.data_ptr() % ALIGNMENT == 0 and all(
        size == 1 or stride == needed
        for size, stride, needed in zip(sfa.shape, sfa.stride(), strides, strict=True)
    ):
        return sfa
    return torch.empty_strided(sfa.shape, strides, dtype=sfa.dtype, device=sfa.device).copy_(sfa)


def row_major(sfb: torch.Tensor) -> torch.Tensor:
    """B's scales as TMA reads them, contiguous and 16-byte aligned: the tensor itself, or else a copy. One
    group's scales of many need not be aligned."""
    sfb = sfb.contiguous()
    return sfb.clone() if sfb.data_ptr() % ALIGNMENT else sfb


def mn_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in floats, of scales [(groups,) mn, k / 128] as TMA reads them."""
    mn, blocks = shape[-2:]
    rows = align(mn, ALIGNMENT // torch.float32.itemsize)
    return (rows * blocks, 1, rows)[-len(shape) :]


def ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def align(x: int, multiple: int) -> int:
    return ceil_div(x, multiple) * multiple


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses of its first byte and of the byte after its last; (0, 0) where it has none."""
    if not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def row_major_strides(sizes: tuple[int, ...]) -> tuple[int, ...]:
    products = itertools.accumulate(reversed(sizes[1:]), lambda x, y: x * y, initial=1)
    return tuple(reversed(list(products)))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""What a call accepts, checked before anything runs.

`operands` checks metadata only (device, dtype, shape, stride, address) and never waits for a GPU; it copies
scales that are not in the layout that kernels read. `call` also checks what the production kernels need of
the sizes and, for tensors on the CPU or with GEMM_LADDER_CHECK=1, the contents of m_indices and masked_m.
Every refusal is one sentence that says what was given and what is needed, and comes before `out` is written.

    A    float8_e4m3fn [m, k], 16-byte aligned
    sfa  float32 [m, ceil(k / 128)], "MN-major, TMA-aligned": stride (1, align(m, 4)), 16-byte aligned.
         Any other stride or address, and a lazily negated view (Tensor.is_neg), is accepted and converted,
         which costs a copy kernel.
    B    float8_e4m3fn [n, k], 16-byte aligned
    sfb  float32 [ceil(n / 128), ceil(k / 128)], contiguous, 16-byte aligned. Another alignment, transposed
         scales and a lazily negated view are accepted and converted.
    out  bfloat16 [m, n], 16-byte aligned, sharing no byte with the others

The elements of a row of A, B and out lie side by side. For the rungs the rows follow each other without gaps;
for the production kernels they may be any multiple of 16 bytes apart, but the matrices of a grouped layout
follow each other without gaps. Scales may also be bfloat16 or float8_e8m0fnu (`scales.as_float32`).

The grouped layouts put a dimension `groups` before B's and sfb's, and have one tensor more:

    contiguous  m_indices int32 [m], contiguous: the group of each row
    masked      masked_m int32 [groups], contiguous: how many rows of each group count; A, sfa and out are
                [groups, max_m, ...], sfa's stride (align(max_m, 4) * ceil(k / 128), 1, align(max_m, 4))
    psum        grouped_layout int32 [groups], contiguous: the row behind each group's last one. The first
                group begins at row 0, and each other one at the next multiple of
                settings.get_mk_alignment_for_contiguous_layout()

No gradient flows through a call: inputs that require grad are refused unless grad mode is off, and an `out`
that requires grad always. All tensors are on one device: the CPU or a Hopper GPU.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from gemm_ladder import scales, settings
from gemm_ladder.arguments import (
    HOPPER,
    K_MULTIPLE,
    MAX_SIZE,
    N_MULTIPLE,
    SCALE_BLOCK,
    TMA_ALIGNMENT,
    Kind,
    align,
    ceil_div,
    row_stride,
)
from gemm_ladder.errors import InputError
from torch._subclasses import FakeTensor

# Whether the contents of m_indices, masked_m and grouped_layout are checked on a GPU, too: that waits for the
# GPU.
check_contents = os.environ.get("GEMM_LADDER_CHECK") == "1"

# The tensor that says which rows belong to a group.
ROWS: dict[Kind, str] = {"contiguous": "m_indices", "masked": "masked_m", "psum": "grouped_layout"}
SCALES = ("sfa", "sfb")
DTYPES = {
    **dict.fromkeys(("A", "B"), torch.float8_e4m3fn),
    **dict.fromkeys(SCALES, torch.float32),
    **dict.fromkeys(ROWS.values(), torch.int32),
    "out": torch.bfloat16,
}
# The transforms of torch.func, and whether a tensor stands for others inside of one.
_WRAPPED = {
    "vmap": torch._C._functorch.is_batchedtensor,
    "functionalize": torch._C._functorch.is_functionaltensor,
    "grad": torch._C._functorch.is_gradtrackingtensor,
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


class CheckedCall(NamedTuple):
    """A call that passed: its tensors, the scales in the layouts that kernels read, and its sizes.

    Attributes:
        rows: m_indices, masked_m or grouped_layout; None in the dense layout.
        m: rows of A and of `out`; in the masked layout those that each group has room for, max_m.
        groups: of B; 1 in the dense layout.
    """

    kind: Kind
    a: torch.Tensor
    sfa: torch.Tensor
    b: torch.Tensor
    sfb: torch.Tensor
    out: torch.Tensor
    rows: torch.Tensor | None
    m: int
    n: int
    k: int
    groups: int


def call(kind: Kind, lhs: object, rhs: object, out: object, rows: object = None) -> CheckedCall:
    """Check a call of the production kernels: `operands`, `supported` and, for tensors on the CPU or with
    GEMM_LADDER_CHECK=1, `contents`.

    Raises:
        InputError: the first thing found wrong.
    """
    checked = operands(kind, lhs, rhs, out, rows, general=True)
    size = dict(zip(DIMENSIONS[kind]["A"], checked.a.shape, strict=True))
    supported(kind, size | dict(zip(DIMENSIONS[kind]["B"], checked.b.shape, strict=True)))
    if check_contents or not checked.a.is_cuda:
        contents(checked)
    return checked


def operands(
    kind: Kind,
    lhs: object,
    rhs: object,
    out: object,
    rows: object = None,
    *,
    hopper: bool = True,
    general: bool = False,
) -> CheckedCall:
    """Check the metadata of a call's tensors (module docstring).

    Args:
        kind: the layout.
        lhs: the pair (A, sfa).
        rhs: the pair (B, sfb).
        out: the output.
        rows: m_indices, masked_m or grouped_layout; None in the dense layout.
        hopper: refuse a GPU that is not Hopper.
        general: accept what only the production kernels can do: rows with gaps between them, n = 0 and k = 0.

    Returns:
        The tensors, with the scales converted where they had to be. m may be 0.

    Raises:
        InputError: the first thing found wrong.
    """
    a, sfa = pair(lhs, "lhs", "(A, sfa)")
    b, sfb = pair(rhs, "rhs", "(B, sfb)")
    if general and kind == "dense":
        a, sfa, out = _as_matrices(a, sfa, out)
    named = {"A": a, "sfa": sfa, "B": b, "sfb": sfb, "out": out}
    if kind != "dense":
        named[ROWS[kind]] = rows
    given = tensors(named)
    device = same_device(given)
    if hopper:
        runs_on(device)
    for name, tensor in given.items():
        if name not in SCALES or tensor.dtype not in scales.CONVERTED:
            dtype(name, tensor, DTYPES[name])
    size = _sizes(kind, given, 0 if general else 1)
    _memory(given, general)
    return CheckedCall(
        kind,
        a=given["A"].detach(),
        sfa=scales.mn_major(scales.as_float32(given["sfa"], "sfa")),
        b=given["B"].detach(),
        sfb=scales.row_major(scales.as_float32(given["sfb"], "sfb", keep=True)),
        out=given["out"],
        rows=given.get(ROWS.get(kind, "")),
        m=size["max_m" if kind == "masked" else "m"],
        n=size["n"],
        k=size["k"],
        groups=size.get("groups", 1),
    )


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


def contents(checked: CheckedCall) -> None:
    """Refuse an m_indices, masked_m or grouped_layout whose contents cannot be used. Waits for the tensor's
    device; does nothing while a CUDA graph is captured, which forbids that.

    Raises:
        InputError: the first row or group that is wrong.
    """
    rows = checked.rows
    if rows is None or _capturing(rows):
        return
    if checked.kind == "contiguous":
        _indices(rows, checked.groups)
    elif checked.kind == "masked":
        _counts(rows, checked.m)
    else:
        _ends(rows, checked.m)


def _indices(m_indices: torch.Tensor, groups: int) -> None:
    """Refuse m_indices that hold what is no group, or a group that begins inside a block of rows.

    A block, of as many rows as settings.get_mk_alignment_for_contiguous_layout() says, belongs to one group,
    or to none (-1). Padding (-1) may also begin inside it.
    """
    row = _first((m_indices < -1) | (m_indices >= groups))
    if row is not None:
        raise InputError(f"m_indices[{row}] is {m_indices[row]}; -1 or a group below {groups} is needed")
    alignment = settings.get_mk_alignment_for_contiguous_layout()
    begins = (m_indices[1:] != m_indices[:-1]) & (m_indices[1:] != -1)
    begins[alignment - 1 :: alignment] = False
    row = _first(begins)
    if row is not None:
        raise InputError(
            f"m_indices[{row + 1}] is {m_indices[row + 1]} after {m_indices[row]}; "
            f"a group that begins at a multiple of {alignment} rows is needed"
        )


def _counts(masked_m: torch.Tensor, max_m: int) -> None:
    """Refuse a masked_m that counts less than 0 rows or more than max_m."""
    group = _first((masked_m < 0) | (masked_m > max_m))
    if group is not None:
        raise InputError(
            f"masked_m[{group}] is {masked_m[group]}; a number from 0 to max_m = {max_m} is needed"
        )


def _as_matrices(*named: object) -> tuple[object, ...]:
    """A, sfa and out with their leading dimensions made one, if all have more than one; otherwise as they
    are."""
    if not all(isinstance(one, torch.Tensor) and one.dim() > 2 for one in named):
        return named
    a, sfa, out = (one for one in named if isinstance(one, torch.Tensor))
    if not a.shape[:-1] == sfa.shape[:-1] == out.shape[:-1]:
        raise InputError(
            f"A has shape {list(a.shape)}, sfa {list(sfa.shape)} and out {list(out.shape)}; the same "
            "dimensions before the last one are needed"
        )
    try:
        return a.view(-1, a.shape[-1]), sfa.reshape(-1, sfa.shape[-1]), out.view(-1, out.shape[-1])
    except RuntimeError:
        raise InputError(
            f"A has strides {a.stride()} and out {out.stride()}; leading dimensions that are one dimension "
            "of rows are needed"
        ) from None


def _ends(grouped_layout: torch.Tensor, m: int) -> None:
    """Refuse a grouped_layout in which a group ends before it begins, or after the last row."""
    alignment, begin = settings.get_mk_alignment_for_contiguous_layout(), 0
    for group, end in enumerate(grouped_layout.tolist()):
        if not begin <= end <= m:
            raise InputError(
                f"grouped_layout[{group}] is {end}; a row from {begin}, where group {group} begins, to "
                f"m = {m} is needed"
            )
        begin = min(align(end, alignment), m)


def _first(wrong: torch.Tensor) -> int | None:
    """The index of the first element that is true."""
    found = wrong.nonzero()
    return int(found[0]) if len(found) else None


def _capturing(tensor: torch.Tensor) -> bool:
    """Whether a CUDA graph is being captured, which forbids looking at a result."""
    if not tensor.is_cuda:
        return False
    with torch.cuda.device(tensor.device):
        return torch.cuda.is_current_stream_capturing()


def _sizes(kind: Kind, given: Mapping[str, torch.Tensor], least: int) -> dict[str, int]:
    """The size of each dimension by its name, after checking that all tensors' shapes agree, and that n and k
    are at least `least`."""
    dimensions = DIMENSIONS[kind]
    of_a = dict(zip(dimensions["A"], sizes("A", given["A"], *dimensions["A"]), strict=True))
    size = dict(zip(dimensions["B"], sizes("B", given["B"], *dimensions["B"]), strict=True)) | of_a
    n, k = size["n"], size["k"]
    if n < least or k < least:
        rows = dimensions["A"][-2]
        raise InputError(f"n is {n} and k is {k}; both must be at least 1 (only {rows} may be 0)")
    if size.get("groups") == 0:
        raise InputError("B has 0 groups; at least 1 is needed")
    for name in ("B", *given):
        needed = needed_shape(name, kind, size)
        if given[name].shape != needed:
            shape(name, given[name], needed, _meaning(name, kind, size))
    return size


def _meaning(name: str, kind: Kind, size: Mapping[str, int]) -> str:
    """Where the sizes that the tensor `name` needs come from, for `shape`."""
    of_a, dimensions = DIMENSIONS[kind]["A"], DIMENSIONS[kind][name]
    named = [of for of in dimensions if of in of_a] if name == "B" else map(_without_blocks, dimensions)
    values = ", ".join(f"{of} = {size[of]}" for of in named)
    whose = "with A's" if name == "B" else "for"
    return f"[{', '.join(dimensions)}] {whose} {values}"


def _memory(given: Mapping[str, torch.Tensor], general: bool) -> None:
    """Check that there is memory, strides and addresses, and that `out` can be written."""
    for name, tensor in given.items():
        has_memory(name, tensor)
        if name in SCALES:
            continue
        if general and name not in ROWS.values():
            spaced(name, tensor)
        else:
            gapless(name, tensor)
        if name not in ROWS.values():
            aligned(name, tensor)
        in_memory(name, tensor)
    sfb_strides(given["sfb"])
    disjoint("out", given)
    no_gradients("out", given)


def no_gradients(output: str, given: Mapping[str, torch.Tensor]) -> None:
    """Refuse an output that requires grad or cannot be written here, and inputs that require grad unless grad
    mode is off."""
    out = given[output]
    if out.requires_grad:
        raise InputError(
            f"{output} requires grad, which no kernel computes; a tensor that does not is needed"
        )
    for name, tensor in given.items():
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise InputError(
                f"{name} requires grad, which no kernel computes; {name}.detach(), or a call inside of "
                "torch.no_grad(), is needed"
            )
    if not out.is_cuda and out.is_inference() and not torch.is_inference_mode_enabled():
        raise InputError(
            f"{output} is an inference tensor, which cannot be written outside torch.inference_mode(); an "
            "ordinary tensor, or a call inside of it, is needed"
        )


def has_memory(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that stands for others or for none: its address is no address of its elements."""
    if isinstance(tensor, FakeTensor):
        raise InputError(f"{name} is a FakeTensor, which has no memory; a tensor that has some is needed")
    for transform, holds in _WRAPPED.items():
        if holds(tensor):
            raise InputError(
                f"{name} is a tensor inside of torch.func.{transform}, for which these products have no "
                "rule; a call outside of it is needed"
            )


def is_distributed(tensor: object) -> bool:
    """Whether it is a DTensor. The class is asked for by its module, because to import that takes a
    second."""
    return type(tensor).__module__.startswith("torch.distributed.tensor")


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


def pair(value: object, name: str, parts: str) -> tuple[object, object]:
    """The two elements of `value`; `parts` names them in the refusal, e.g. "(A, sfa)"."""
    if not isinstance(value, (tuple, list)):
        raise InputError(f"{name} is of type {type(value).__name__}; the pair {parts} is needed")
    if len(value) != 2:
        raise InputError(f"{name} has {len(value)} elements; the pair {parts} is needed")
    return value[0], value[1]


def two_dimensions(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, after checking that it has two dimensions or more."""
    if tensor.dim() < 2:
        raise InputError(f"{name} has shape {list(tensor.shape)}; at least 2 dimensions are needed")
    return tensor


def tensors(named: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """The same objects, after checking that each is a dense tensor."""
    found = {}
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{name} is of type {type(tensor).__name__}; a torch.Tensor is needed")
        if is_distributed(tensor):
            raise InputError(
                f"{name} is a DTensor, which may lie on many devices; one device's, to_local(), is needed"
            )
        if tensor.layout != torch.strided:
            raise InputError(f"{name} has layout {tensor.layout}; a dense tensor (torch.strided) is needed")
        found[name] = tensor
    return found


def same_device(named: Mapping[str, torch.Tensor]) -> torch.device:
    """The one device on which all of them are: the CPU or a CUDA device."""
    (first, tensor), *others = named.items()
    device: torch.device = tensor.device
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
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) != HOPPER:
        raise InputError(
            f"{device} is a {torch.cuda.get_device_name(device)}, "
            f"compute capability {capability[0]}.{capability[1]}; "
            "a Hopper GPU (compute capability 9.0), or tensors on the CPU, is needed"
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


def gapless(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        needed = row_major_strides(tensor.shape)
        raise InputError(
            f"{name} has strides {tensor.stride()}; contiguous rows, strides {needed}, are needed"
        )


def spaced(name: str, tensor: torch.Tensor) -> None:
    """Refuse rows that TMA cannot load: whose elements do not lie side by side, which overlap, or which are
    not a multiple of 16 bytes apart; and matrices with gaps between them."""
    if tensor.is_contiguous() or not tensor.numel():
        return
    rows, length = tensor.shape[-2:]
    between = row_stride(tensor.shape, tensor.stride())
    if length > 1 and tensor.stride(-1) != 1:
        needed = "rows whose elements lie side by side (stride 1)"
    elif between < length:
        needed = f"rows that do not overlap, at least {length} elements apart,"
    elif between * tensor.element_size() % TMA_ALIGNMENT:
        needed = f"rows that are a multiple of {TMA_ALIGNMENT} bytes apart"
    elif tensor.dim() == 3 and tensor.size(0) > 1 and tensor.stride(0) != rows * between:
        needed = f"matrices that follow each other without a gap, a stride of {rows * between},"
    else:
        return
    raise InputError(f"{name} has strides {tensor.stride()}; {needed} are needed")


def aligned(name: str, tensor: torch.Tensor) -> None:
    if tensor.numel() and tensor.data_ptr() % TMA_ALIGNMENT:
        raise InputError(
            f"{name} starts at address {tensor.data_ptr():#x}; a multiple of {TMA_ALIGNMENT} bytes is needed"
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
    """Refuse an output that shares memory with an input. Everything between an input's first and last byte
    counts as its memory, gaps between its rows too."""
    begin, end = _span(named[output])
    for name, tensor in named.items():
        if name == output:
            continue
        first, last = _span(tensor)
        if max(begin, first) < min(end, last):
            raise InputError(f"{output} shares memory with {name}; memory of its own is needed")


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses of its first byte and of the byte after its last; (0, 0) where it has none."""
    if not tensor.numel():
        return 0, 0
    begin = tensor.data_ptr()
    if tensor.is_contiguous():
        return begin, begin + tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.element_size()


def row_major_strides(sizes: tuple[int, ...]) -> tuple[int, ...]:
    products = itertools.accumulate(reversed(sizes[1:]), lambda x, y: x * y, initial=1)
    return tuple(reversed(list(products)))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

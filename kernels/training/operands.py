"""What a call of the training kernels accepts, checked before anything runs.

Every refusal is one sentence that says what was given and what is needed, and comes before the output is
written.

    A    float8_e4m3fn [m, k], rows contiguous, each row at a multiple of 16 bytes
    sfa  float32 [m, ceil(k / 128)], "MN-major, TMA-aligned": stride (1, align(m, 4)), 16-byte aligned. Any
         other stride or address is accepted and converted, which costs a copy kernel
    B    float8_e4m3fn [n, k], and sfb float32 [n, ceil(k / 128)], likewise
    D    float32 [m, n], n a multiple of 4, rows contiguous, each row at a multiple of 16 bytes, sharing no
         byte with A, B and their scales
    C    None, D itself, or float32 [m, n] of any strides that shares no byte with D

Grouped along K, group g has k[g] of K. D and C are [groups, m, n]. A is one-dimensional: the [m, k[g]] of the
groups, each contiguous, one after the other; B likewise. sfa is [m, sum over g of ceil(k[g] / 128)].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from gemm_ladder import checks, scales
from gemm_ladder.arguments import FP32_N_MULTIPLE, K_MULTIPLE, MAX_SIZE, SCALE_BLOCK, TMA_ALIGNMENT, ceil_div
from gemm_ladder.errors import InputError
from gemm_ladder.settings import whole_number

RECIPE = (1, 1, SCALE_BLOCK)  # by which calls ask for these products


class Group(NamedTuple):
    """One product, and where its operands begin.

    Attributes:
        number: its index in D.
        k: may be 0.
        begin: the k of all groups before it: its A begins at element m * begin, its B at n * begin.
        scale_row: K blocks of all groups before it.
    """

    number: int
    k: int
    begin: int
    scale_row: int


class CheckedCall(NamedTuple):
    """A call that passed.

    Attributes:
        groups: the products; one in a dense call.
        a, b: [m, k] and [n, k] in a dense call, else one-dimensional.
        sfa, sfb: the scales of all groups, as TMA reads them: [m, K blocks] and [n, K blocks].
        d: the output, [m, n] or [groups, m, n]; c: what is added, which may be `d`, or None.
        m, n: of every group; either may be 0.
    """

    groups: tuple[Group, ...]
    a: torch.Tensor
    b: torch.Tensor
    sfa: torch.Tensor
    sfb: torch.Tensor
    d: torch.Tensor
    c: torch.Tensor | None
    m: int
    n: int


def dense(lhs: object, rhs: object, d: object, c: object, turned: bool = False) -> CheckedCall:
    """Check a dense call.

    Args:
        lhs, rhs: the pairs (A, sfa) and (B, sfb).
        turned: accept scales [ceil(k / 128), m] as well, as the first generation does; a square is taken for
            [m, ceil(k / 128)].

    Raises:
        InputError: the first thing found wrong.
    """
    given = _tensors(lhs, rhs, d, c)
    m, k = checks.sizes("A", given["A"], "m", "k")
    n, _ = checks.sizes("B", given["B"], "n", "k")
    checks.shape("B", given["B"], (n, k), f"[n, k] with A's k = {k}")
    _multiple("k", k, K_MULTIPLE)
    _multiple("n", n, FP32_N_MULTIPLE)
    blocks = ceil_div(k, SCALE_BLOCK)
    _scales(given, m, n, blocks, turned)
    for name in {"D", "C"} & given.keys():
        checks.shape(name, given[name], (m, n), f"[m, n] for m = {m}, n = {n}")
    for name in ("A", "B", "D"):
        _rows(name, given[name])
    _memory(given)
    return _checked([Group(0, k, 0, 0)], given, m, n)


def k_grouped(
    lhs: object,
    rhs: object,
    d: object,
    ks: object,
    c: object,
    multiple: int = SCALE_BLOCK,
    turned: bool = False,
) -> CheckedCall:
    """Check a call that is grouped along K.

    Args:
        lhs, rhs: the pairs (A, sfa) and (B, sfb).
        turned: scales are [sum of blocks, m], as the first generation has them, and are accepted the other
            way if the shape tells the two apart.
        ks: the k of each group, on the host.
        multiple: of which each k has to be a multiple.

    Raises:
        InputError: the first thing found wrong.
    """
    given = _tensors(lhs, rhs, d, c)
    groups, m, n = checks.sizes("D", given["D"], "groups", "m", "n")
    _multiple("n", n, FP32_N_MULTIPLE)
    sizes = ks_of_groups(ks, groups, multiple)
    for name, rows in (("A", m), ("B", n)):
        total, letter = rows * sum(sizes), "m" if name == "A" else "n"
        if not given[name].is_contiguous() or given[name].numel() != total:
            raise InputError(
                f"{name} has shape {list(given[name].shape)} and strides {given[name].stride()}; {total} "
                f"contiguous elements are needed: [{letter}, k] of each group for {letter} = {rows} and "
                f"k in {list(sizes)}"
            )
        checks.aligned(name, given[name])
    blocks = [ceil_div(k, SCALE_BLOCK) for k in sizes]
    _scales(given, m, n, sum(blocks), turned, squares_turned=turned)
    if "C" in given:
        checks.shape("C", given["C"], (groups, m, n), f"[groups, m, n] as D, for {groups} groups")
    out = given["D"]
    if out.numel():
        _rows("D", out[0])
        if groups > 1 and out.stride(0) * out.element_size() % TMA_ALIGNMENT:
            raise InputError(
                f"D has strides {out.stride()}; groups that begin a multiple of 4 elements, 16 bytes, after "
                "each other are needed"
            )
        if groups > 1 and out.stride(0) < (m - 1) * out.stride(1) + n:
            raise InputError(f"D has strides {out.stride()}; groups that do not overlap are needed")
    _memory(given)
    for name in ("A", "B"):
        given[name] = given[name].view(-1)
    found, begin, scale_row = [], 0, 0
    for index, (k, of_group) in enumerate(zip(sizes, blocks, strict=True)):
        found.append(Group(index, k, begin, scale_row))
        begin, scale_row = begin + k, scale_row + of_group
    return _checked(found, given, m, n)


def described(lhs: object, rhs: object, d: object, c: object) -> dict[str, torch.Tensor]:
    """The tensors of a call by their names, after checking what can be said about them without their memory,
    which FakeTensors do not have: types, devices and dtypes.

    Raises:
        InputError: the first thing found wrong.
    """
    a, sfa = checks.pair(lhs, "lhs", "(A, sfa)")
    b, sfb = checks.pair(rhs, "rhs", "(B, sfb)")
    named = {"A": a, "sfa": sfa, "B": b, "sfb": sfb, "D": d}
    given = checks.tensors(named if c is None else named | {"C": c})
    checks.same_device(given)
    for name, tensor in given.items():
        checks.in_no_transform(name, tensor)
        if name not in checks.SCALES or tensor.dtype not in scales.CONVERTED:
            checks.dtype(name, tensor, torch.float8_e4m3fn if name in ("A", "B") else torch.float32)
    return given


def _tensors(lhs: object, rhs: object, d: object, c: object) -> dict[str, torch.Tensor]:
    given = described(lhs, rhs, d, c)
    checks.runs_on(given["D"].device)
    for name, tensor in given.items():
        checks.has_memory(name, tensor)
    return given


def ks_of_groups(ks: object, groups: int, multiple: int) -> tuple[int, ...]:
    """The k of each group, of which there are so many, as integers."""
    if isinstance(ks, torch.Tensor) and ks.device.type == "cpu":
        ks = ks.tolist()
    if not isinstance(ks, Sequence):
        raise InputError(
            f"ks is of type {type(ks).__name__}; a list of ints, the k of each group, is needed on the host"
        )
    if len(ks) != groups:
        raise InputError(f"ks has {len(ks)} elements; {groups}, one for each group of D, are needed")
    for index, k in enumerate(ks):
        if type(k) is int and 0 <= k <= MAX_SIZE and not k % multiple:
            continue  # at once, because this is the usual case and there may be many groups
        _multiple(f"ks[{index}]", whole_number(f"ks[{index}]", k), multiple)
    return tuple(map(int, ks))


def _multiple(name: str, value: int, multiple: int) -> None:
    if value % multiple:
        raise InputError(f"{name} is {value}; a multiple of {multiple} is needed")
    if value > MAX_SIZE:
        raise InputError(f"{name} is {value}; less than 2^31 is needed")


def _scales(
    given: dict[str, torch.Tensor], m: int, n: int, blocks: int, turned: bool, squares_turned: bool = False
) -> None:
    """Check the shapes of the scales; those that lie the other way are turned."""
    for name, letter, rows in (("sfa", "m", m), ("sfb", "n", n)):
        _multiple(letter, rows, 1)
        if turned and given[name].shape == (blocks, rows) and (rows != blocks or squares_turned):
            given[name] = given[name].mT
        meaning = f"[{letter}, K blocks] for {letter} = {rows} and {blocks} blocks of {SCALE_BLOCK}"
        checks.shape(name, given[name], (rows, blocks), meaning)


def _rows(name: str, tensor: torch.Tensor) -> None:
    """Check a matrix whose rows TMA moves."""
    if not tensor.numel():
        return
    rows, columns = tensor.shape
    step, inner = tensor.stride()
    size = tensor.element_size()
    if (columns > 1 and inner != 1) or (rows > 1 and step < columns):
        raise InputError(
            f"{name} has strides {(step, inner)}; contiguous rows that do not overlap, strides ({columns} or "
            "more, 1), are needed"
        )
    if rows > 1 and step * size % TMA_ALIGNMENT:
        raise InputError(
            f"{name} has strides {(step, inner)}; rows that begin a multiple of {TMA_ALIGNMENT // size} "
            "elements, 16 bytes, after each other are needed"
        )
    checks.aligned(name, tensor)


def _memory(given: dict[str, torch.Tensor]) -> None:
    """Check that the numbers lie in memory as they are, and that D can be written."""
    for name in ("A", "B", "D"):
        checks.in_memory(name, given[name])
    d = given["D"]
    checks.disjoint("D", {name: tensor for name, tensor in given.items() if name != "C"})
    if "C" in given and not _same(given["C"], d):
        checks.disjoint("D", {"D": d, "C": given["C"]})
    checks.no_gradients("D", given)


def _same(c: torch.Tensor, d: torch.Tensor) -> bool:
    return c.data_ptr() == d.data_ptr() and c.stride() == d.stride() and c.is_neg() == d.is_neg()


def _checked(groups: list[Group], given: dict[str, torch.Tensor], m: int, n: int) -> CheckedCall:
    c = given.get("C")
    if c is not None:
        c = given["D"] if _same(c, given["D"]) else c.detach()
    sfa, sfb = (scales.mn_major(scales.as_float32(given[name], name)) for name in ("sfa", "sfb"))
    a, b = given["A"].detach(), given["B"].detach()
    return CheckedCall(tuple(groups), a, b, sfa, sfb, given["D"], c, m, n)

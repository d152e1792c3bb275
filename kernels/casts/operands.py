"""What a cast accepts, checked before anything runs, and the tensors that it returns.

    x         float32, bfloat16 or float16 [m, k] or [groups, m, k], of any strides; ahead of
              SiLU-and-multiply [..., 2 k], the gates before the numbers that they multiply
    weight    of RMSNorm: [k], of x's type
    rows      int32 [m'], contiguous: which row of x each of m' rows is made of. x is a matrix then. A row
              whose index is not one of x's, such as -1, is cast as a row of zeros. The indices are not looked
              at here: the kernel does that
    masked_m  int32 [groups], contiguous: how many rows of each group are cast, per token. Other rows are
              neither read nor written. x has three dimensions then
    ks        int32 [groups], contiguous: how many rows of x, one after the other, belong to each group of
              transposed codes. Each is a multiple of 128; others are rounded down to one, and negative ones
              to 0. x is a matrix then, whose rows are a multiple of 128. Codes of rows of no group are not
              written
    psum_m    int32 [groups], contiguous: behind which row of the result each group of the psum layout ends,
              per token. The next one begins at a multiple of the alignment of that layout. Rows of no group,
              and with `rows` those that are made of none of x's, are written or not, as it is faster. x, or
              the result of `rows`, is a matrix then

Each refusal is one sentence that says what was given and what is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from gemm_ladder import checks, scales, settings
from gemm_ladder.arguments import K_MULTIPLE, MAX_SIZE, SCALE_BLOCK, ceil_div
from gemm_ladder.casts.kernel import INPUTS, Before, Kernel, Kind
from gemm_ladder.checks import grouped
from gemm_ladder.errors import InputError

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # codes and scales, as callers get them

NAME = "a cast"  # in errors of a launch
E4M3 = torch.float8_e4m3fn
LARGEST_EPS = torch.finfo(torch.float32).max


class CheckedCast(NamedTuple):
    """A cast that passed.

    Attributes:
        kernel: which.
        x: [groups, rows of x, k or 2 k].
        weight, rows, counts, ks, ends: as above, or None; counts is masked_m, ends is psum_m.
        grouped: whether x was given with groups.
        m, k: of each group of the result.
        epsilon: of RMSNorm.
        use_ue8m0: whether scales are rounded up to powers of two.
        alignment: of groups in the psum layout.
    """

    kernel: Kernel
    x: torch.Tensor
    weight: torch.Tensor | None
    rows: torch.Tensor | None
    counts: torch.Tensor | None
    ks: torch.Tensor | None
    ends: torch.Tensor | None
    grouped: bool
    m: int
    k: int
    epsilon: float
    use_ue8m0: bool
    alignment: int

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that were given, by their names in messages."""
        given = (self.x, self.weight, self.rows, self.counts, self.ks, self.ends)
        named = zip(("x", "weight", "rows", "masked_m", "ks", "psum_m"), given, strict=True)
        return {name: one for name, one in named if one is not None}


class Results(NamedTuple):
    """What a cast writes.

    Attributes:
        codes: float8_e4m3fn [groups, m, k], contiguous; turned: [groups, k, m], rows align(m, 16) apart; with
            ks the memory of a [1, k, m] that holds each group's [k, ks[group]] in turn.
        scales: float32 [groups, rows, columns], as many as there are runs or blocks of the m x k numbers.
        inverse_roots: float32 [groups, m], memory that RMSNorm per block and per channel needs; else None.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    inverse_roots: torch.Tensor | None = None


def check(
    kind: Kind,
    before: Before,
    x: object,
    weight: object = None,
    eps: object = 0.0,
    use_ue8m0: object = False,
    rows: object = None,
    masked_m: object = None,
    ks: object = None,
    psum_m: object = None,
) -> CheckedCast:
    """Check a cast's arguments.

    Raises:
        InputError: the first thing found wrong.
    """
    optional = {"weight": weight, "rows": rows, "masked_m": masked_m, "ks": ks, "psum_m": psum_m}
    given = {"x": x} | {name: one for name, one in optional.items() if one is not None}
    for name, tensor in checks.tensors(given).items():  # before any of them is copied
        checks.has_memory(name, tensor)
    return described(kind, before, x, weight, eps, use_ue8m0, rows, masked_m, ks, psum_m)


def described(
    kind: Kind,
    before: Before,
    x: object,
    weight: object = None,
    eps: object = 0.0,
    use_ue8m0: object = False,
    rows: object = None,
    masked_m: object = None,
    ks: object = None,
    psum_m: object = None,
    *,
    divided: Callable[[int, int], int] = ceil_div,
) -> CheckedCast:
    """As `check`, by what can be said of tensors without memory, whose sizes may be symbols.

    divided: halves the columns of x, which may be a symbol, ahead of SiLU-and-multiply.
    """
    optional = {"weight": weight, "rows": rows, "masked_m": masked_m, "ks": ks, "psum_m": psum_m}
    needed = {"x": x, "weight": weight} if before == "rms_norm" else {"x": x}
    given = checks.tensors(needed | {name: one for name, one in optional.items() if one is not None})
    checks.same_device(given)
    matrix = given["x"]
    if matrix.dtype not in INPUTS or matrix.dim() not in (2, 3):
        raise InputError(
            f"x is {matrix.dtype} {list(matrix.shape)}; a float32, bfloat16 or float16 matrix, or three "
            "dimensions with groups, are needed"
        )
    m, k = matrix.shape[-2:]
    if before == "silu_and_mul":
        if _known(k % 2 != 0):
            raise InputError(
                f"x has {k} columns; an even number, for gates and what they multiply, is needed"
            )
        k = divided(k, 2)
    if (norm := given.get("weight")) is not None:
        checks.dtype("weight", norm, matrix.dtype)
        checks.shape("weight", norm, (k,), f"[k] for x's k = {k}")
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise InputError(f"eps is of type {type(eps).__name__}; an int or a float is needed")
    if not 0 <= eps <= LARGEST_EPS:
        said = eps if isinstance(eps, float) or abs(eps) < 10**20 else "an int of more than 20 digits"
        raise InputError(f"eps is {said}; a number, 0 or larger, that FP32 can hold, is needed")
    use_ue8m0 = checks.flag("use_ue8m0", use_ue8m0)
    if (index := given.get("rows")) is not None:
        (m,) = _indices("rows", index, "m")
        checks.sizes("x", matrix, "m", "k")
    if (counts := given.get("masked_m")) is not None:
        if kind != "per_token":
            raise InputError("masked_m is given for a cast that is not per token; only those take it")
        _indices("masked_m", counts, "groups")
        groups, *_ = checks.sizes("x", matrix, "groups", "m", "k")
        checks.shape("masked_m", counts, (groups,), f"[groups] for x's {groups} groups")
    if (ends := given.get("psum_m")) is not None:
        if kind != "per_token":
            raise InputError("psum_m is given for a cast that is not per token; only those take it")
        _indices("psum_m", ends, "groups")
        checks.sizes("x", matrix, "m", "k")
    if (of_groups := given.get("ks")) is not None:
        _indices("ks", of_groups, "groups")
        checks.sizes("x", matrix, "k", "n")
        if kind != "per_channel_turned":
            raise InputError("ks is given for codes that are not transposed; transposed=True is needed")
        if _known(m % SCALE_BLOCK != 0):
            raise InputError(f"there are {m} rows; with ks a multiple of {SCALE_BLOCK} is needed")
    for name, size in (("m", m), ("k", k)):
        if _known(size > MAX_SIZE):
            raise InputError(f"{name} is {size}; at most 2^31 - 1 is needed")
    groups = matrix.shape[0] if matrix.dim() == 3 else 1
    runs = groups * m * ceil_div(k, SCALE_BLOCK)
    if _known(runs > MAX_SIZE):
        raise InputError(f"x has {runs} runs of {SCALE_BLOCK} numbers; at most 2^31 - 1 are needed")
    detached = matrix.detach().resolve_neg()
    return CheckedCast(
        Kernel(kind, before, matrix.dtype),
        detached if matrix.dim() == 3 else detached[None],
        None if norm is None else norm.detach().resolve_neg().contiguous(),
        index,
        counts,
        of_groups,
        ends,
        matrix.dim() == 3,
        m,
        k,
        float(eps),
        use_ue8m0,
        settings.get_mk_alignment_for_contiguous_layout(),
    )


def contents(call: CheckedCast) -> None:
    """Look at what masked_m, psum_m and ks hold, unless a CUDA graph is being captured.

    Raises:
        InputError: the first number that makes no sense.
    """
    if call.counts is not None:
        grouped.contents("masked", call.counts, call.m, len(call.x))
    if call.ends is not None:
        grouped.contents("psum", call.ends, call.m, len(call.ends), "psum_m")
    if call.ks is not None and not grouped.capturing(call.ks.device):
        begin = 0
        for group, rows in enumerate(call.ks.tolist()):
            if rows % SCALE_BLOCK or not 0 <= rows <= call.m - begin:
                left = call.m - begin
                raise InputError(
                    f"ks[{group}] is {rows}; a multiple of {SCALE_BLOCK} from 0 to {left}, the rows that are "
                    "left, is needed"
                )
            begin += rows


def _known(wrong: bool) -> bool:
    """Whether something wrong is known. Of a symbol a comparison is no bool, and would be a condition of what
    is exported or compiled if it were made one; the operator itself compares numbers."""
    return wrong is True


def _indices(name: str, tensor: torch.Tensor, dimension: str) -> tuple[int, ...]:
    checks.dtype(name, tensor, torch.int32)
    found = checks.sizes(name, tensor, dimension)
    checks.gapless(name, tensor)
    checks.in_memory(name, tensor)
    return found


def results(call: CheckedCast, mn_major: bool, ceil_div: Callable[[int, int], int] = ceil_div) -> Results:
    """New tensors for a cast, not initialised.

    Args:
        mn_major: lay the scales out as the products take them: those of tokens and channels "MN-major,
            TMA-aligned", those of blocks contiguous. Otherwise all are contiguous.
        ceil_div: divides m and k, which may be symbols.
    """
    kind, groups, m, k, device = call.kernel.kind, call.x.shape[0], call.m, call.k, call.x.device
    if kind == "per_channel_turned":
        row = m if call.ks is not None else ceil_div(m, K_MULTIPLE) * K_MULTIPLE  # with ks they are the same
        # as_strided, because a slice would compare m with the row's length.
        whole = torch.empty(groups, k, row, dtype=E4M3, device=device)
        codes = whole.as_strided((groups, k, m), (k * row, row, 1))
    else:
        codes = torch.empty(groups, m, k, dtype=E4M3, device=device)
    rows = m if kind == "per_token" else ceil_div(m, SCALE_BLOCK)
    columns = ceil_div(k, SCALE_BLOCK) if kind in ("per_token", "per_block") else k
    if not mn_major or kind == "per_block":
        strides: tuple[int, ...] = (rows * columns, columns, 1)
    elif kind == "per_token":
        strides = scales.mn_major_strides((groups, rows, columns), ceil_div)
    else:
        by_group, of_channel, of_run = scales.mn_major_strides((groups, columns, rows), ceil_div)
        strides = (by_group, of_run, of_channel)
    return Results(
        codes,
        torch.empty_strided((groups, rows, columns), strides, dtype=torch.float32, device=device),
        torch.empty(groups, m, dtype=torch.float32, device=device) if call.kernel.reads_twice else None,
    )


def as_returned(call: CheckedCast, out: Results) -> Pair:
    """The codes and scales as callers get them: without groups if x had none, and turned scales as the codes
    are, [k, runs of m]."""
    codes, found = out.codes, out.scales
    if call.kernel.kind == "per_channel_turned":
        found = found.mT
    if call.ks is not None:
        return codes.view(-1), found[0]
    return (codes, found) if call.grouped else (codes[0], found[0])

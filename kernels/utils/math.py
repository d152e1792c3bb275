"""The casts that make the operands, on the tensors' device: the same bits as `gemm_ladder.ref.fp8` gives.

On a Hopper GPU those whose groups are 128 long, or 128 x 128, are done by the kernels of `gemm_ladder.casts`,
whose functions also give scales in the layout that the products take, and do what comes before a cast.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from gemm_ladder import checks, ops
from gemm_ladder.arguments import SCALE_BLOCK, align, ceil_div
from gemm_ladder.casts import eager, functions, operands
from gemm_ladder.casts.kernel import Kind
from gemm_ladder.errors import InputError
from gemm_ladder.scales import pack_ue8m0_to_int, unpack_ue8m0_from_int
from gemm_ladder.settings import whole_number

__all__ = [
    "align",
    "cast_back_from_fp8",
    "ceil_div",
    "ceil_to_ue8m0",
    "pack_ue8m0_to_int",
    "per_block_cast_to_fp8",
    "per_channel_cast_to_fp8",
    "per_custom_dims_cast_to_fp8",
    "per_token_cast_to_fp8",
    "unpack_ue8m0_from_int",
]

_CAST_FROM = (torch.float32, torch.bfloat16, torch.float16)
CASTS: tuple[Kind, ...] = ("per_token", "per_block", "per_channel")


def per_token_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = SCALE_BLOCK, use_packed_ue8m0: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cast for A: one scale for each run of `gran_k` elements of a row, so that the largest becomes 448.

    Args:
        x: float32, bfloat16 or float16 [m, k], of any strides.
        use_ue8m0: round each scale up to a power of two; it stays a float32. Hopper does not need it.
        gran_k: how many elements of a row share a scale; the products need 128.
        use_packed_ue8m0: return the scales as `pack_ue8m0_to_int` packs them, with 1 after the last ones of a
            row up to a multiple of four. use_ue8m0 is needed for it. No kernel here reads them.

    Returns:
        float8_e4m3fn [m, k] and its scales, float32 [m, ceil(k / gran_k)], both contiguous. The products
        convert such scales in every call; get_mn_major_tma_aligned_tensor does it once.

    Raises:
        InputError: x is not a matrix of one of these types, gran_k is below 1, or use_packed_ue8m0 is given
            without use_ue8m0.
    """
    if use_packed_ue8m0 and not use_ue8m0:
        raise InputError("use_packed_ue8m0 is given without use_ue8m0; both are needed, or neither")
    codes, scales = _cast("per_token", x, use_ue8m0, gran_k)
    if use_packed_ue8m0:
        scales = pack_ue8m0_to_int(F.pad(scales, (0, -scales.shape[-1] % 4), value=1.0))
    return codes, scales


def per_block_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = SCALE_BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cast for B: one scale for each block of gran_k x gran_k elements.

    Args:
        x: float32, bfloat16 or float16 [n, k], of any strides.
        use_ue8m0, gran_k: as for `per_token_cast_to_fp8`.

    Returns:
        float8_e4m3fn [n, k] and its scales, float32 [ceil(n / gran_k), ceil(k / gran_k)], both contiguous.

    Raises:
        InputError: as `per_token_cast_to_fp8`.
    """
    return _cast("per_block", x, use_ue8m0, gran_k)


def per_channel_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = SCALE_BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cast of `per_token_cast_to_fp8` down the columns: one scale for each run of `gran_k` elements of a
    column.

    Args:
        x: float32, bfloat16 or float16 [k, n], of any strides.
        use_ue8m0, gran_k: as for `per_token_cast_to_fp8`.

    Returns:
        float8_e4m3fn [k, n] and its scales, float32 [ceil(k / gran_k), n], both contiguous.

    Raises:
        InputError: as `per_token_cast_to_fp8`.
    """
    return _cast("per_channel", x, use_ue8m0, gran_k)


def per_custom_dims_cast_to_fp8(
    x: torch.Tensor, dims: Sequence[int], use_ue8m0: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """A cast with one scale for each index of some dimensions.

    Args:
        x: float32, bfloat16 or float16, of any shape and strides.
        dims: the dimensions whose indices have scales of their own; a scale covers all of the others.
        use_ue8m0: as for `per_token_cast_to_fp8`.

    Returns:
        float8_e4m3fn of x's shape, and the scales, float32, of those of its sizes that are in `dims` and are
        not 1.

    Raises:
        InputError: x is not of one of these types, is empty, or does not have one of the dimensions.
    """
    if not isinstance(x, torch.Tensor) or x.dtype not in _CAST_FROM or not x.numel():
        given = f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else f"of type {type(x).__name__}"
        raise InputError(f"x is {given}; float32, bfloat16 or float16 with an element is needed")
    checks.dense("x", x)
    if not isinstance(dims, Sequence) or not all(isinstance(one, int) for one in dims):
        raise InputError(f"dims is {dims!r}; a tuple of dimensions is needed")
    if wrong := [one for one in dims if not 0 <= one < x.dim()]:
        raise InputError(f"dims has {wrong[0]}; a dimension from 0 to {x.dim() - 1} is needed")
    values = x.detach().float()
    covered = [one for one in range(x.dim()) if one not in set(dims)]
    amax = values.abs().amax(dim=covered, keepdim=True) if covered else values.abs()
    scales = eager.over_e4m3_max(amax.clamp(min=eager.SMALLEST_AMAX))
    if use_ue8m0:
        scales = eager.round_up_to_power_of_two(scales)
    return eager.to_e4m3(values * (1 / scales)), scales.squeeze()


def cast_back_from_fp8(
    x_fp8: torch.Tensor, sf: torch.Tensor, gran_k: int = SCALE_BLOCK, use_packed_ue8m0: bool = False
) -> torch.Tensor:
    """What `per_token_cast_to_fp8` has cast, in float32: each number times its scale.

    Args:
        x_fp8: float8_e4m3fn [m, k].
        sf: float32 [m, ceil(k / gran_k)]; with use_packed_ue8m0 int32, as `pack_ue8m0_to_int` packs them.
        gran_k, use_packed_ue8m0: as for the cast.

    Raises:
        InputError: the types or the shapes are others.
    """
    given = checks.tensors({"x_fp8": x_fp8, "sf": sf})
    checks.same_device(given)
    checks.dtype("x_fp8", x_fp8, torch.float8_e4m3fn)
    rows, columns = checks.sizes("x_fp8", x_fp8, "m", "k")
    if use_packed_ue8m0:
        sf = unpack_ue8m0_from_int(sf)[..., : ceil_div(columns, gran_k)]
    checks.dtype("sf", sf, torch.float32)
    checks.shape("sf", sf, (rows, ceil_div(columns, gran_k)), f"[m, ceil(k / {gran_k})] for x_fp8's sizes")
    return x_fp8.float() * sf.repeat_interleave(gran_k, dim=1)[:, :columns]


def ceil_to_ue8m0(x: torch.Tensor) -> torch.Tensor:
    """Positive numbers, each rounded up to a power of two, which is what UE8M0 holds.

    Args:
        x: float32, bfloat16 or float16.

    Returns:
        float32 of x's shape; NaN and infinity stay.

    Raises:
        InputError: x is of another type.
    """
    if not isinstance(x, torch.Tensor) or x.dtype not in _CAST_FROM:
        given = x.dtype if isinstance(x, torch.Tensor) else f"of type {type(x).__name__}"
        raise InputError(f"x is {given}; a float32, bfloat16 or float16 tensor is needed")
    return eager.round_up_to_power_of_two(x.float())


def _cast(which: Kind, x: torch.Tensor, use_ue8m0: bool, gran_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A cast. It is an operator of torch where somebody wants to see it, and where it is exported. Compiled,
    it is the operator where a kernel may do it, and else what it is made of, which torch.compile makes one
    kernel of."""
    compiled = ops.compiling() and not ops.exporting()
    if x.is_cuda if compiled else (ops.compiling() or ops.seen(x)):
        operator = getattr(torch.ops.gemm_ladder, f"{which}_cast_to_fp8")
        found: tuple[torch.Tensor, torch.Tensor] = operator(
            x.detach() if isinstance(x, torch.Tensor) else x, use_ue8m0, gran_k
        )
        return found
    return (_by_operators if compiled else _by_kernel)(which, x, use_ue8m0, gran_k)


def _by_kernel(
    which: Kind, x: torch.Tensor, use_ue8m0: bool, gran_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A cast by its kernel where there is one, else by torch's operators."""
    _check(x, gran_k)
    if gran_k == SCALE_BLOCK and x.is_cuda and x.numel() and not checks.stands_for_others(x):
        call = operands.check(which, "nothing", x, use_ue8m0=use_ue8m0)
        out = functions.run(call, mn_major=False)
        return out.codes[0], out.scales[0]
    return _by_operators(which, x, use_ue8m0, gran_k)


def _by_operators(
    which: Kind, x: torch.Tensor, use_ue8m0: bool, gran_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(x, gran_k)
    if which == "per_channel":
        codes, scales = eager.blocks(x.T, 1, gran_k, use_ue8m0)
        return codes.T.contiguous(), scales.T.contiguous()
    return eager.blocks(x, 1 if which == "per_token" else gran_k, gran_k, use_ue8m0)


def _fake(which: Kind, x: torch.Tensor, use_ue8m0: bool, gran_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The results without memory."""
    _check(x, gran_k)
    rows, columns = (
        size if which == whole else ops.symbolic_ceil_div(size, gran_k)
        for size, whole in zip(x.shape, ("per_token", "per_channel"), strict=True)
    )
    codes = x.new_empty(x.shape, dtype=torch.float8_e4m3fn)
    return codes, x.new_empty(rows, columns, dtype=torch.float32)


def _check(x: torch.Tensor, gran_k: int) -> None:
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or x.dtype not in _CAST_FROM:
        given = f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else f"of type {type(x).__name__}"
        raise InputError(f"x is {given}; a float32, bfloat16 or float16 matrix is needed")
    checks.dense("x", x)
    if whole_number("gran_k", gran_k) < 1:
        raise InputError(f"gran_k is {gran_k}; 1 or more is needed")


def _define(which: Kind) -> None:
    ops.define(
        f"{which}_cast_to_fp8(Tensor x, bool use_ue8m0, int gran_k) -> (Tensor, Tensor)",
        functools.partial(_by_kernel, which),
        functools.partial(_fake, which),
    )


for _which in CASTS:
    _define(_which)

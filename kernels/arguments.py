"""What every layer shares: the struct that a launch is given, and the numbers that the product is made of.

Nothing here imports torch or NumPy, and nothing of this package: any module can import it.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemm_ladder.checks import CheckedCall

# How the rows of A belong to groups of B: there is one group; m_indices says each row's group; or each group
# has room for max_m rows, of which masked_m says how many count; or a list says where each group's rows end.
Kind = Literal["dense", "contiguous", "masked", "psum"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # in the order of enum class Kind (production/config.cuh)

SCALE_BLOCK = 128  # elements along k that share a scale, and along n for B; promotion happens as often
M_ALIGNMENT = 128  # rows of the contiguous layout that belong to one group as a block, unless another is set
LEAST_M_ALIGNMENT = 64  # what can be set: the rows of a WGMMA, which all have one B
K_MULTIPLE = 16  # A and B are loaded by TMA, so one of their rows is a multiple of 16 bytes
TMA_ALIGNMENT = 16  # bytes: what TMA asks of an address and of a stride
# D is stored by TMA in whole pieces of 16 bytes. If a row ended inside one, what lies behind it would be
# overwritten.
N_MULTIPLE = 8  # BF16 numbers in 16 bytes
FP32_N_MULTIPLE = 4  # FP32 numbers
# Of m, n and k: the kernels' coordinates are signed 32-bit numbers. Their counts of tiles are, too, but need
# no bound here: 2^31 tiles of 128 x 128 are a D of 64 TiB, and a launch of 2^31 blocks is refused.
MAX_SIZE = 2**31 - 1

HOPPER = (9, 0)  # the compute capability that code for sm_90a runs on
H100_SMS = 132  # of an H100 or H200 SXM
# A persistent kernel starts at most one block per SM. The emulated GPU has few SMs, so that a block takes
# several tiles even at the small shapes that the emulator is used for.
EMULATED_SMS = 4


class GemmArgs(ctypes.Structure):
    """struct GemmArgs of include/args.cuh"""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("sfa", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("sfb", ctypes.c_void_p),
        ("d", ctypes.c_void_p),
        ("m", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("sfa_stride", ctypes.c_int64),
        ("num_sms", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
    )


class GroupedArgs(GemmArgs):
    """struct GroupedArgs of include/args.cuh. Launchers that take a GemmArgs can be given one as well."""

    _fields_ = (  # type: ignore[assignment] # those of this class come after the base's
        ("a_stride", ctypes.c_int64),
        ("b_stride", ctypes.c_int64),
        ("d_stride", ctypes.c_int64),
        ("layout", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
        ("groups_a", ctypes.c_int64),
    )

    @classmethod
    def of(cls, call: CheckedCall, num_sms: int, stream: int = 0) -> GroupedArgs:
        """The arguments of one launch.

        Args:
            call: what is multiplied.
            num_sms: how many SMs the kernel may use.
            stream: a cudaStream_t; the emulator ignores it.
        """
        return cls(
            a=call.a.data_ptr(),
            sfa=call.sfa.data_ptr(),
            b=call.b.data_ptr(),
            sfb=call.sfb.data_ptr(),
            d=call.out.data_ptr(),
            m=call.m,
            n=call.n,
            k=call.k,
            sfa_stride=align(call.m, TMA_ALIGNMENT // ctypes.sizeof(ctypes.c_float)),
            num_sms=num_sms,
            stream=stream,
            a_stride=row_stride(call.a.shape, call.a.stride()),
            b_stride=row_stride(call.b.shape, call.b.stride()),
            d_stride=row_stride(call.out.shape, call.out.stride()),
            layout=None if call.rows is None else call.rows.data_ptr(),
            groups=call.groups,
            groups_a=call.groups if call.kind == "masked" else 1,
        )


def row_stride(shape: Sequence[int], strides: Sequence[int]) -> int:
    """The elements from row to row of a matrix, or of matrices one after the other. A single row has its
    length as its stride."""
    for size, stride in zip(reversed(shape[:-1]), reversed(strides[:-1]), strict=True):
        if size > 1:
            return stride
    return shape[-1]


def ceil_div(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def align(x: int, multiple: int) -> int:
    """`x`, rounded up to a multiple of `multiple`."""
    return ceil_div(x, multiple) * multiple

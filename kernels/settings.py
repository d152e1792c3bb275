"""Settings for all calls of a process: how many SMs to use, the alignment of the contiguous layout, and
whether the contents of index tensors on a GPU are checked.

They hold for every GPU of the process. On a GPU with fewer SMs than the limit, all of its SMs are used.
"""

from __future__ import annotations

import operator
import os
from typing import SupportsIndex

from gemm_ladder.arguments import LEAST_M_ALIGNMENT, M_ALIGNMENT, MAX_SIZE
from gemm_ladder.errors import InputError

# Whether the contents of m_indices, masked_m, grouped_layout, psum_m and ks are checked on a GPU, too, which
# has to be waited for.
check_contents = os.environ.get("GEMM_LADDER_CHECK") == "1"

_num_sms = 0
_mk_alignment = M_ALIGNMENT


def set_num_sms(num_sms: int) -> None:
    """Use at most this many SMs from the next call on; 0: all of them again.

    Raises:
        InputError: num_sms is no integer, negative, or 2^31 or more.
    """
    from gemm_ladder.production import fast_path  # here: it imports torch

    global _num_sms
    _num_sms = whole_number("num_sms", num_sms)
    fast_path.use(_num_sms, _mk_alignment)


def get_num_sms() -> int:
    """The number that was set; else the number of SMs of the current CUDA device, or 0 without one.

    set_num_sms(get_num_sms()) changes nothing, so callers can save the setting and restore it.
    """
    if _num_sms:
        return _num_sms
    import torch

    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count)


def num_sms_limit() -> int:
    """The number that was set, or 0 for no limit."""
    return _num_sms


def builds_in_background() -> bool:
    """Whether the kernels of a weight are compiled in the background once the first of them is needed:
    GEMM_LADDER_BACKGROUND is not 0."""
    return os.environ.get("GEMM_LADDER_BACKGROUND", "").strip() != "0"


def get_mk_alignment_for_contiguous_layout() -> int:
    """How many rows of the contiguous layout belong to one group as a block: 128, or what was set."""
    return _mk_alignment


def set_mk_alignment_for_contiguous_layout(alignment: int) -> None:
    """Declare that the rows of every group begin at a multiple of this many rows.

    In the psum layout they begin exactly at the next multiple. With less than 128 fewer kernels can be used.

    Raises:
        InputError: the alignment is not a positive multiple, below 2^31, of the 64 rows of a WGMMA.
    """
    from gemm_ladder.production import fast_path  # here: it imports torch

    global _mk_alignment
    alignment = whole_number("alignment", alignment)
    if alignment == 0 or alignment % LEAST_M_ALIGNMENT:
        raise InputError(
            f"an alignment of {alignment} rows is given; a multiple of {LEAST_M_ALIGNMENT} is needed"
        )
    _mk_alignment = alignment
    fast_path.use(_num_sms, _mk_alignment)


def get_theoretical_mk_alignment_for_contiguous_layout(
    expected_m: int | None = None, num_groups: int | None = None
) -> int:
    """The smallest alignment with which all kernels can be used: 128 rows.

    Args:
        expected_m, num_groups: the rows of a group, or of all of so many groups; the answer does not depend
            on them.
    """
    return M_ALIGNMENT


def get_m_alignment_for_contiguous_layout() -> int:
    """`get_mk_alignment_for_contiguous_layout` by its first-generation name."""
    return _mk_alignment


def integer(name: str, value: object) -> int:
    """`value` as an int of any size, for a caller that refuses what is too small in words of its own. A
    tensor is refused: reading it would wait for its device."""
    if not isinstance(value, SupportsIndex) or hasattr(value, "data_ptr"):
        raise InputError(f"{name} is of type {type(value).__name__}; an int is needed")
    return operator.index(value)


def whole_number(name: str, value: object) -> int:
    """`value` as an int from 0 to MAX_SIZE, which is what kernels and the fast path can be given."""
    number = integer(name, value)
    if number < 0:
        raise InputError(f"{name} is {number}; 0 or more is needed")
    if number > MAX_SIZE:
        raise InputError(f"{name} is {number}; less than 2^31 is needed")
    return number


# What DeepGEMM's callers may set, too. It has no effect here: calls overlap where that is faster, and the
# choice of a kernel knows no such conditions.

_tc_util, _pdl = 100, True


def set_tc_util(new_tc_util: int) -> None:
    """Keep a number, as DeepGEMM does for the share of tensor cores to use, in percent. It changes nothing.

    Raises:
        InputError: it is no integer from 0 to 100.
    """
    global _tc_util
    value = whole_number("new_tc_util", new_tc_util)
    if value > 100:
        raise InputError(f"new_tc_util is {value}; at most 100, in percent, is needed")
    _tc_util = value


def get_tc_util() -> int:
    """The number that was set, or 100."""
    return _tc_util


def set_pdl(new_pdl: bool) -> None:
    """Keep whether calls may overlap, as DeepGEMM does. It changes nothing."""
    global _pdl
    _pdl = bool(new_pdl)


def get_pdl() -> bool:
    """What was set, or True."""
    return _pdl


def use_deterministic_algorithms(deterministic: bool = True) -> None:
    """Accepted for compatibility; it changes nothing: every product repeats its bits."""


def set_ignore_compile_dims(new_value: bool) -> None:
    """Accepted for compatibility; it changes nothing: n and k are always constants of a kernel."""


def set_block_size_multiple_of(new_value: object) -> None:
    """Accepted for compatibility; it changes nothing: the choice of a tile has no such condition."""

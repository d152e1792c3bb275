"""What a process sets for all of its calls: how many SMs to use, and the alignment of the contiguous layout.

Neither belongs to a device: a limit on SMs is the same on all GPUs of a process, and means all of them on a
GPU that has fewer.
"""

from __future__ import annotations

import operator

from gemm_ladder.arguments import M_ALIGNMENT
from gemm_ladder.errors import InputError

_num_sms = 0
_mk_alignment = M_ALIGNMENT


def set_num_sms(num_sms: int) -> None:
    """Use at most this many SMs from the next call on; 0 for all of them again.

    Raises:
        InputError: it is not a number, or below 0.
    """
    from gemm_ladder.production import fast_path  # here: it imports torch

    global _num_sms
    _num_sms = whole_number("num_sms", num_sms)
    fast_path.forget()  # its plans are for as many SMs as there were


def get_num_sms() -> int:
    """The number that was set; else how many SMs the current CUDA device has, or 0 where there is none.

    set_num_sms(get_num_sms()) changes nothing, so a region can be bracketed with the two.
    """
    if _num_sms:
        return _num_sms
    import torch

    if not torch.cuda.is_available():
        return 0
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def num_sms_limit() -> int:
    """The number that was set, or 0 for no limit. A launch asks this, and then its own device."""
    return _num_sms


def get_mk_alignment_for_contiguous_layout() -> int:
    """Rows of a block of the contiguous layout, all of which belong to one group: 128, or what was set."""
    return _mk_alignment


def set_mk_alignment_for_contiguous_layout(alignment: int) -> None:
    """Say that the rows of every group begin at a multiple of this many rows.

    Raises:
        InputError: it is not a multiple of the 128 rows that a kernel needs.
    """
    global _mk_alignment
    alignment = whole_number("alignment", alignment)
    if alignment == 0 or alignment % M_ALIGNMENT:
        raise InputError(f"an alignment of {alignment} rows is given; a multiple of {M_ALIGNMENT} is needed")
    _mk_alignment = alignment


def get_theoretical_mk_alignment_for_contiguous_layout(expected_m: int | None = None) -> int:
    """The least alignment that the kernels need: 128 rows, whatever `expected_m`, the rows of a group."""
    return M_ALIGNMENT


def get_m_alignment_for_contiguous_layout() -> int:
    """get_mk_alignment_for_contiguous_layout, as the first generation calls it."""
    return _mk_alignment


def whole_number(name: str, value: object) -> int:
    """`value` as an int of 0 or more; a tensor is refused, too: reading it would wait for its device."""
    if not hasattr(value, "__index__") or hasattr(value, "data_ptr"):
        raise InputError(f"{name} is of type {type(value).__name__}; an int is needed")
    number = operator.index(value)
    if number < 0:
        raise InputError(f"{name} is {number}; 0 or more is needed")
    return number

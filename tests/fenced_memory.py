"""`python fenced_memory.py RUNG`: calls a rung with every tensor between pages without access.

On the emulator a kernel's pointers are real ones. A read of one byte outside a tensor, even if its value is
not used, ends this process with a segmentation fault: that is why it is a process of its own.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import sys

import gemm_ladder as gl
import numpy as np
import torch
from gemm_ladder.lab.operands import normal

PAGE = mmap.PAGESIZE
NO_ACCESS = 0  # PROT_NONE


def fenced(values: np.ndarray, at_end: bool) -> np.ndarray:
    """A copy that ends right before, or else begins right after, a page without access."""
    size = -(-values.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, size + 2 * PAGE)
    array = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for page in (array.ctypes.data, array.ctypes.data + PAGE + size):
        if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")
    begin = PAGE + (size - values.nbytes if at_end else 0)
    copy = array[begin : begin + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def call(rung: str, m: int, at_end: bool) -> None:
    # m and n are not multiples of a tile. The size of every tensor is a multiple of 16 bytes, so that a
    # tensor which ends at a page still has the aligned address that it needs.
    operands = normal(np.random.default_rng(0), m, 136, 256)
    a, b, sfb = (torch.from_numpy(fenced(x, at_end)) for x in (operands.a, operands.b, operands.sfb))
    sfa = torch.from_numpy(fenced(np.ascontiguousarray(operands.sfa.T), at_end)).T
    out = fenced(np.zeros((m, 136), np.uint16), at_end)
    gl.rungs[rung](
        (a.view(torch.float8_e4m3fn), sfa),
        (b.view(torch.float8_e4m3fn), sfb),
        torch.from_numpy(out.view(np.int16)).view(torch.bfloat16),
    )
    np.testing.assert_array_equal(out, operands.expected_bits(rung))


if __name__ == "__main__":
    faulthandler.enable()
    for at_end in (True, False):
        for m in (68, 300):  # s7 uses another tile for each
            print(f"{m} rows, the tensors {'end' if at_end else 'begin'} at a fence", flush=True)
            call(sys.argv[1], m, at_end)
    print("done")

"""The emulator with g++ and with clang++: the rungs' bits, and the calls that each compiler puts before
accesses to memory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.errors import EmulatorError

RUNGS = """
import hashlib
import numpy as np
from gemm_ladder.lab.operands import normal
from rung_runs import KERNELS, run
for rung in KERNELS:
    operands = normal(np.random.default_rng(7), 130, 136, 640)
    bits = run(rung, operands, "emulator", seed=5)
    np.testing.assert_array_equal(bits, operands.expected_bits(rung.name))
    print(rung.name, hashlib.sha256(bits).hexdigest())
"""
# Statements that read from or write to x[at] and, if they are longer, what is behind it.
ACCESSES = {
    "a struct is read": "*reinterpret_cast<Row*>(y) = *reinterpret_cast<Row*>(x + at)",
    "a struct is written": "*reinterpret_cast<Row*>(x + at) = *reinterpret_cast<Row*>(y)",
    "a struct is cleared": "*reinterpret_cast<Row*>(x + at) = Row{}",
    "memcpy from": "std::memcpy(y, x + at, bytes)",
    "memcpy to": "std::memcpy(x + at, y, bytes)",
    "memmove": "std::memmove(x + at, y, bytes)",
    "memset": "std::memset(x + at, 0, bytes)",
    "a loop that clears": "for (int i = 0; i < bytes / 4; ++i) x[at + i] = 0",
    "float4": "*reinterpret_cast<float4*>(x + at) = *reinterpret_cast<float4*>(y)",
    "double": "*reinterpret_cast<double*>(x + at) = 1.0",
    "a byte": "reinterpret_cast<char*>(x + at)[2] = 1",
    "two bytes": "*reinterpret_cast<short*>(x + at) = 1",
    "packed": "reinterpret_cast<Odd*>(x + at)->four = 1",
    "volatile": "*const_cast<volatile float*>(x + at) = 1",
    "atomic store": "__atomic_store_n(reinterpret_cast<int*>(x + at), 1, __ATOMIC_RELAXED)",
    "fetch_add": "__atomic_fetch_add(reinterpret_cast<int*>(x + at), 1, __ATOMIC_SEQ_CST)",
    "exchange": "y[0] = __atomic_exchange_n(reinterpret_cast<long long*>(x + at), 1, __ATOMIC_SEQ_CST)",
    "compare_exchange": "std::atomic_ref<float>(x[at]).compare_exchange_strong(was, 1.0f)",
}
CASES = "\n".join(f"case {i}: {statement}; return;" for i, statement in enumerate(ACCESSES.values()))
KERNEL = f"""
#include <atomic>
#include <cstring>
#include <cuda_runtime.h>
struct Row {{ float values[8]; }};
struct __attribute__((packed)) Odd {{ char one; int four; long long eight; }};
__global__ void k(float* x, float* y, int which, int at, int bytes) {{
    float was = 0;
    if (threadIdx.x == 0)
    switch (which) {{
{CASES}
    }}
}}
"""
FIRST = 1 + KERNEL.splitlines().index(CASES.splitlines()[0])


@pytest.fixture(params=["g++", "clang++"])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param} (Debian: apt install {request.param.removesuffix('++')})")
    monkeypatch.setenv("CXX", request.param)
    return str(request.param)


@pytest.mark.slow
def test_the_rungs_have_the_same_bits(compiler: str) -> None:
    """In a process of its own, because a process keeps the libraries that it has loaded."""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run(
        [sys.executable, "-c", RUNGS], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 7


@pytest.mark.slow
def test_an_access_outside_an_array_is_named(compiler: str) -> None:
    """Inside, it is no fault; outside, it is one before it happens, with its line."""
    for which, access in enumerate(ACCESSES):
        x, y = np.ones(64, np.float32), np.ones(64, np.float32)
        lab.run(KERNEL, x, y, which, 16, 12, block=32)
        before = x.copy()
        with pytest.raises(EmulatorError) as caught:
            lab.run(KERNEL, x, y, which, 64, 12, block=32)
        assert re.search(r"(reads|writes) \d+ bytes at x\[64\], outside x", str(caught.value)), access
        assert caught.value.what == "global_out_of_bounds"
        file, number = str(caught.value.line).split(":")
        if access != "compare_exchange":  # which is a function of the C++ library's
            # clang++ makes one call of several equal ones.
            assert file == "k.cu" and FIRST <= int(number) < FIRST + len(ACCESSES), access
        np.testing.assert_array_equal(x, before)


@pytest.mark.slow
def test_an_accumulator_in_flight_is_guarded(compiler: str) -> None:
    """An array of a thread's own, which clang++'s -fsanitize=thread has no calls for."""
    source = """
    #include "launch.cuh"
    #include "layout.cuh"
    __global__ void k(float* out) {
        float d[4] = {};
        ptx::wgmma_fence();
        const uint64_t tile = smem_descriptor(ptx::shared_memory());
        ptx::wgmma<8>(d, tile, tile, 1);
        ptx::wgmma_commit_group();
        out[threadIdx.x] = d[1];
        ptx::wgmma_wait_group<0>();
    }
    """
    with pytest.raises(EmulatorError, match="reads accumulator register 1 while a WGMMA") as caught:
        lab.run(source, np.zeros(128, np.float32), block=128, shared_bytes=16384)
    assert caught.value.line and caught.value.line.endswith(":10")


@pytest.mark.slow
def test_equal_barriers_of_one_line_stay_two(compiler: str) -> None:
    """A compiler may not make one call of them: a warp that has diverged would go unnoticed."""
    source = """
    #include <cuda_runtime.h>
    __global__ void k(float* out) {
        if (threadIdx.x % 2) __syncthreads(); else __syncthreads();
        out[threadIdx.x] = 1;
    }
    """
    with pytest.raises(EmulatorError, match="the warp has diverged") as caught:
        lab.run(source, np.zeros(64, np.float32), block=64)
    assert caught.value.what == "divergent_warp"
    for line in (caught.value.line, caught.value.other_line):
        assert line and line.endswith(":4")

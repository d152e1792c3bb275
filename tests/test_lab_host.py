"""What a kernel's file has for the host: kernel<<<...>>>, the runtime's functions, variables that the host
fills; and arrays whose dtype is not the kernel's."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest
from gemm_ladder import build, lab
from gemm_ladder.errors import BuildError, EmulatorError, InputError
from gemm_ladder.ref import emulator

# A launcher with all that a host program does: memory of its own, two launches of which the second uses what
# the first has left, a constant, and what went wrong.
LAUNCHER = """
#include <cuda_runtime.h>
__constant__ float weights[4];
__device__ unsigned finished;
template <int kFactor>
__global__ void scale(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = kFactor * weights[i % 4] * x[i];
    if (threadIdx.x == 0) atomicInc(&finished, gridDim.x);
}
__global__ void __cluster_dims__(2, 1, 1) sum(const float* y, float* out, int n) {
    extern __shared__ float line[];
    line[threadIdx.x] = threadIdx.x < n ? y[threadIdx.x] : 0.0f;
    __syncthreads();
    if (threadIdx.x == 0 && blockIdx.x == 0)
        for (int i = 0; i < n; ++i) *out += line[i];
    if (threadIdx.x == 0 && blockIdx.x == 1) out[1] = finished;
}
struct Args {
    const float* x;
    float* out;
    int n, room, blocks;
};
extern "C" const char* gemm_ladder_launch(const Args* args) {
    const float host[4] = {1, 2, 3, 4};
    const unsigned none = 0;
    float* y = nullptr;
    cudaMalloc(&y, args->room);
    cudaMemcpyToSymbol(weights, host, sizeof host);
    cudaMemcpyToSymbol(finished, &none, sizeof none);
    scale<10><<<2, 32>>>(args->x, y, args->n);
    sum<<<args->blocks, dim3(64), 64 * sizeof(float), nullptr>>>(y, args->out, args->n);
    const cudaError_t error = cudaGetLastError();
    if (cudaFree(y) != error && error != cudaErrorInvalidConfiguration) return "cudaFree";
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
"""


class Args(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("n", ctypes.c_int),
        ("room", ctypes.c_int),
        ("blocks", ctypes.c_int),
    )


def launched(room: int = 256, blocks: int = 2) -> tuple[str | None, np.ndarray, emulator.Run]:
    x, out = np.ones(64, np.float32), np.zeros(2, np.float32)
    library = build.load(LAUNCHER, target="emulator", name="launcher").lib
    args = Args(x.ctypes.data, out.ctypes.data, 64, room, blocks)
    with emulator.emulator() as run:
        said = emulator.launch(library, args, {"x": x, "out": out})
    return said, out, run


def test_a_launcher_of_two_kernels() -> None:
    said, out, run = launched()
    assert said is None and out.tolist() == [10 * 16 * (1 + 2 + 3 + 4), 2]
    assert run.steps > 2 * 32 + 2 * 64, "of both kernels"


def test_outside_what_cudamalloc_gave() -> None:
    with pytest.raises(
        EmulatorError, match=r"at cudaMalloc_\d+\[252\], outside cudaMalloc_\d+ of shape 252"
    ) as caught:
        launched(room=252)
    assert caught.value.what == "global_out_of_bounds" and caught.value.line == "launcher.cu:8"


def test_a_grid_that_is_no_multiple_of_the_cluster() -> None:
    said, out, _ = launched(blocks=3)
    assert said == "invalid configuration argument" and out.tolist() == [0, 0]


SYMBOLS = """
#include <cuda_runtime.h>
namespace table { __constant__ float c[4]; }
__device__ unsigned count;
__global__ void k(float* y) {
    y[threadIdx.x] = table::c[threadIdx.x % 4];
    atomicInc(&count, 1000);
}
__global__ void main_kernel() {}
int main() {
    float* y;
    cudaMalloc(&y, 128);
    k<<<1, 32>>>(y);
    return cudaDeviceSynchronize();
}
"""


def test_variables_that_are_filled_from_outside() -> None:
    y, c = np.zeros(32, np.float32), np.arange(4, dtype=np.float32)
    count = np.full(1, 7, np.uint32)
    found = lab.sweep(SYMBOLS, y, block=32, kernel="k", seeds=3, symbols={"table::c": c, "count": count})
    assert found.sound, found
    assert y.tolist() == [0, 1, 2, 3] * 8 and count.tolist() == [7 + 32], "each launch begins with the same"


@pytest.mark.parametrize(
    ("symbols", "said"),
    [
        ({"count": np.zeros(2, np.uint32)}, "The array for count has 8 bytes; 4 without gaps are needed"),
        (
            {"count": 3},
            "symbols has 'count': 3; the names of __device__ or __constant__ variables, and an array",
        ),
        ({"c+1": np.zeros(1)}, "symbols has 'c+1'"),
    ],
)
def test_symbols_that_do_not_suit(symbols: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        lab.run(SYMBOLS, np.zeros(32, np.float32), block=32, kernel="k", symbols=symbols)
    assert said in str(caught.value)


STRUCTURE = """
#include <cuda_runtime.h>
struct Both { float *x, *y; };
__global__ void k(const __grid_constant__ Both both) { both.y[threadIdx.x] += both.x[threadIdx.x]; }
"""


class Both(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p), ("y", ctypes.c_void_p))


def test_arrays_that_a_structure_points_to() -> None:
    """The emulator knows those that it is told of. Others are a fault, and a sweep restores them."""
    x, y = np.ones(32, np.float32), np.zeros(32, np.float32)
    both = Both(x.ctypes.data, y.ctypes.data)
    assert lab.sweep(STRUCTURE, both, block=32, pointed_to={"x": x, "both.y": y}, seeds=3).sound
    assert (y == 1).all()
    with pytest.raises(EmulatorError, match=r"at both\.y\[\d+\], outside both.y of shape 31"):
        lab.run(STRUCTURE, both, block=32, pointed_to={"x": x, "both.y": y[:31]})
    with pytest.raises(InputError, match="pointed_to has 'x': 3; arrays on the CPU are needed"):
        lab.run(STRUCTURE, both, block=32, pointed_to={"x": 3})


POINTERS = """
#include <cuda_runtime.h>
struct Mine { int a; };
__global__ void k(const float* f, int* s, uint16_t* u, double* d, const Mine* m, void* v, bool* b,
                  float4* f4, const uint8_t* bytes) {}
"""


@pytest.mark.parametrize(
    ("index", "dtype", "said"),
    [
        (0, "float32", None),
        (0, "float64", "f is float64; float32 is needed"),
        (0, "float16", "f is float16; float32 is needed"),
        (0, "int32", "f is int32; float32 is needed"),
        (1, "int64", "s is int64; int32 is needed"),
        (1, "uint32", None),
        (1, "float32", "s is float32; int32 is needed"),
        (2, "bfloat16", None),
        (2, "float16", None),
        (2, "float32", "u is float32; uint16, or another dtype of 16 bits, is needed"),
        (3, "float32", "d is float32; float64 is needed"),
        (4, "float64", None),
        (5, "int8", None),
        (6, "bool", None),
        (6, "int32", "b is int32; bool is needed"),
        (7, "float32", None),
        (8, "float64", None),
    ],
)
def test_dtypes(index: int, dtype: str, said: str | None) -> None:
    args: list[np.ndarray | None] = [None] * 9
    args[index] = np.zeros(4, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    if said is None:
        lab.run(POINTERS, *args)
        return
    with pytest.raises(InputError) as caught:
        lab.run(POINTERS, *args)
    assert said in str(caught.value)


VECTORS = """
#include <cuda_runtime.h>
__global__ void k(float* x) {
    const float2 old = atomicAdd(reinterpret_cast<float2*>(x), make_float2(1, 2));
    if (old.x < 0) x[0] = 0;
    atomicAdd(reinterpret_cast<float4*>(x + 4), make_float4(1, 2, 3, 4));
}
__global__ void misaligned(float* x) { atomicAdd(reinterpret_cast<float2*>(x + 1), make_float2(1, 2)); }
__global__ void shared(float* x) {
    __shared__ float2 s;
    atomicAdd(&s, make_float2(1, 2));
}
__global__ void outside(float* x) { atomicAdd(reinterpret_cast<float4*>(x + 8), make_float4(1, 2, 3, 4)); }
"""


def test_atomic_additions_of_vectors() -> None:
    x = np.zeros(8, np.float32)
    assert lab.sweep(VECTORS, x, kernel="k", block=64, grid=2, seeds=4).sound
    assert x.tolist() == [128, 256, 0, 0, 128, 256, 384, 512]
    for kernel, what in (
        ("misaligned", "misaligned"),
        ("shared", "invalid_operand"),
        ("outside", "global_out_of_bounds"),
    ):
        with pytest.raises(EmulatorError) as caught:
            lab.run(VECTORS, x, kernel=kernel, block=32)
        assert caught.value.what == what, caught.value


def test_the_last_block_adds_up() -> None:
    """CUDA's sample threadFenceReduction: a counter that is a __device__ variable."""
    source = """
    #include <cuda_runtime.h>
    __device__ unsigned count;
    __global__ void k(float* x, float* out) {
        __shared__ bool last;
        if (threadIdx.x == 0) {
            x[blockIdx.x] = 1;
            __threadfence();
            last = atomicInc(&count, gridDim.x - 1) == gridDim.x - 1;
        }
        __syncthreads();
        if (last && threadIdx.x == 0)
            for (int i = 0; i < gridDim.x; i++) *out += x[i];
    }
    """
    x, out = np.zeros(8, np.float32), np.zeros(1, np.float32)
    assert lab.sweep(source, x, out, grid=8, block=32, seeds=8).sound
    assert out[0] == 8


CRASHES = """
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <cuda_runtime.h>
__global__ void writes(int* out) { out[threadIdx.x] = 7; }
__global__ void __cluster_dims__(16, 1, 1) wide(int* out) { out[blockIdx.x] = 9; }
struct Args {
    int* out;
    int way, zero;
    const int* null;
};
static int recurse(int depth) {
    volatile int more = depth + 1;
    return more ? recurse(more) + 1 : 0;
}
extern "C" const char* gemm_ladder_launch(const Args* args) {
    writes<<<1, args->way == 8 ? 64 : 32>>>(args->out);
    const int way = args->way;
    if (way == 1) args->out[0] = 5 / args->zero;
    if (way == 2) args->out[0] = *args->null;
    if (way == 3) std::memcpy(args->out, args->null, 128 + args->zero);
    if (way == 4) args->out[0] = recurse(1);
    if (way == 5) assert(args->zero);
    if (way == 6) std::exit(EXIT_FAILURE);
    if (way == 7) throw std::runtime_error("why");
    if (way == 8 && cudaGetLastError() != cudaSuccess) abort();
    if (way == 10) cudaFuncSetAttribute(wide, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (way >= 9) wide<<<16, 32>>>(args->out);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
"""


class CrashArgs(ctypes.Structure):
    _fields_ = (("out", ctypes.c_void_p), ("way", ctypes.c_int), ("zero", ctypes.c_int))
    _fields_ += (("null", ctypes.c_void_p),)


@pytest.mark.parametrize(
    ("way", "line", "said"),
    [
        (1, 21, "divides an integer by zero"),
        (2, 22, "uses an address that does not exist"),
        (3, 23, "uses an address that does not exist"),
        (4, None, "has used up its stack"),
        (5, 25, "fails the assertion `args->zero'"),
        (6, 26, "calls exit(1)"),
        (7, None, "throws an exception that nothing catches: why"),
    ],
)
def test_a_launcher_that_crashes(way: int, line: int | None, said: str) -> None:
    """Python goes on, and the next launch works."""
    out = np.zeros(32, np.int32)
    library = build.load(CRASHES, target="emulator", name="crashes").lib
    with pytest.raises(EmulatorError, match="emulator: the launcher, on the host, ") as caught:
        emulator.launch(library, CrashArgs(out.ctypes.data, way), {"out": out})
    assert said in str(caught.value) and caught.value.what == "crashed"
    assert line is None or caught.value.line == f"crashes.cu:{line}"
    assert way != 4 or caught.value.line in ("crashes.cu:15", "crashes.cu:16"), "in recurse()"
    assert emulator.launch(library, CrashArgs(out.ctypes.data, 0), {"out": out}) is None
    assert (out == 7).all()


THREADS = """
#include <cuda_runtime.h>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <thread>
__global__ void writes(int* out) { out[threadIdx.x] = 7; }
struct Args {
    int* out;
    int way, zero;
    const int* null;
};
static std::atomic<bool> begun = false;
static __noinline__ void crash(int* out, int way, int zero) {
    begun = true;
    if (way == 1) *out = 5 / zero;
    if (way == 2) throw std::runtime_error("why");
    if (way == 3) std::exit(EXIT_FAILURE);
    if (way == 4) std::abort();
}
extern "C" const char* gemm_ladder_launch(const Args* args) {
    writes<<<1, 32>>>(args->out);
    std::thread other(crash, args->out, args->way, args->zero);
    while (!begun) std::this_thread::yield();
    if (args->way == 4)
        other.detach();
    else
        other.join();
    std::this_thread::sleep_for(std::chrono::milliseconds(args->way == 4 ? 100 : 0));
    return nullptr;
}
"""


@pytest.mark.parametrize(
    ("way", "line", "said"),
    [
        (1, 16, "divides an integer by zero"),
        (2, 17, "is aborted, as by an exception that nothing catches"),
        (3, 18, "calls exit(1)"),
        (4, 19, "calls abort()"),  # of a launcher that does not wait for it
    ],
)
def test_a_thread_of_a_launcher_that_crashes(way: int, line: int, said: str) -> None:
    out = np.zeros(32, np.int32)
    library = build.load(THREADS, target="emulator", name="threads").lib
    with pytest.raises(EmulatorError, match="on the host, in a thread that it has started, ") as caught:
        emulator.launch(library, CrashArgs(out.ctypes.data, way), {"out": out})
    assert said in str(caught.value) and caught.value.what == "crashed"
    assert caught.value.line == f"threads.cu:{line}"
    assert emulator.launch(library, CrashArgs(out.ctypes.data, 0), {"out": out}) is None
    assert (out == 7).all()


def test_a_library_that_crashes_when_it_is_loaded() -> None:
    """Which the process that builds it does first."""
    source = """
    #include <cuda_runtime.h>
    static int* volatile nowhere = nullptr;
    static int first = *nowhere;
    __global__ void k(int* out) { out[0] = first; }
    """
    with pytest.raises(BuildError, match="loading the library ends with SIGSEGV: what runs then crashes"):
        lab.run(source, np.zeros(1, np.int32))


def test_a_launcher_that_gives_up_after_a_fault() -> None:
    """The fault is the kernel's."""
    out = np.zeros(32, np.int32)
    library = build.load(CRASHES, target="emulator", name="crashes").lib
    with pytest.raises(EmulatorError, match=r"outside out of shape 32") as caught:
        emulator.launch(library, CrashArgs(out.ctypes.data, 8), {"out": out})
    assert caught.value.what == "global_out_of_bounds" and caught.value.line == "crashes.cu:7"


def test_a_cluster_of_sixteen() -> None:
    """More than 8 blocks need cudaFuncSetAttribute, on a GPU as well."""
    out = np.zeros(32, np.int32)
    library = build.load(CRASHES, target="emulator", name="crashes").lib
    said = emulator.launch(library, CrashArgs(out.ctypes.data, 9), {"out": out})
    assert said == "invalid configuration argument" and (out == 7).all()
    assert emulator.launch(library, CrashArgs(out.ctypes.data, 10), {"out": out}) is None
    assert (out[:16] == 9).all()

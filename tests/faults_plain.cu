// Kernels that go wrong as any C++ does: they use memory that is not theirs, do not end, or crash
// (test_faults_plain.py).
#include "ptx.cuh"

// A use of a value that no compiler removes.
__device__ void sink(float value) { [[maybe_unused]] volatile float used = value; }

// Uses up a stack.
__device__ int recurse(volatile int depth) { return depth ? recurse(depth + 1) + 1 : 0; }

__global__ void fault(int which, float* tensor) {
    float d[4] = {};
    switch (which) {
        case 0:  // a read behind the tensor's end
            if (threadIdx.x == 70) d[0] = tensor[64 * 64 + 2];
            return sink(d[0]);
        case 1:  // a write before its begin
            if (threadIdx.x == 70) tensor[-1] = 1.0f;
            return;
        case 2:  // a lane reads another one's local variable
            return sink(*reinterpret_cast<float*>(ptx::shfl_sync_idx(reinterpret_cast<uint64_t>(d), 9)));
        case 3:  // a loop without end
            while (threadIdx.x == 70) {
            }
            return;
        case 4:  // a loop that waits for a number in global memory, which nobody writes
            while (*static_cast<volatile float*>(tensor) == 0.0f) {
            }
            return;
        case 5:  // a recursion without end
            return sink(static_cast<float>(recurse(1)));
        case 6:  // code that is not to be reached
            if (threadIdx.x == 70) __builtin_trap();
            return;
        case 7:  // two blocks write one element
            if (threadIdx.x == 70) tensor[5] = 1.0f;
            return;
        case 8:  // an index outside a local array
            d[*tensor == 0.0f ? 4 : 0] = 1.0f;
            return sink(d[0]);
    }
}

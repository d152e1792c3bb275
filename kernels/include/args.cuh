// The argument of every launcher: one struct, the same for the GPU and for the emulator, filled in by Python.
#pragma once

#include <cstdint>

// D[m, n] = sum_k A[m, k] * sfa[m, k / 128] * B[n, k] * sfb[n / 128, k / 128]
struct GemmArgs {
    const uint8_t* a;  // E4M3 [m, k], k contiguous
    const float* sfa;  // [ceil(k / 128)][sfa_stride]: MN-major, one value per row of A
    const uint8_t* b;  // E4M3 [n, k], k contiguous
    const float* sfb;  // [ceil(n / 128)][ceil(k / 128)], contiguous
    uint16_t* d;       // BF16 [m, n], n contiguous
    int64_t m, n, k;
    int64_t sfa_stride;  // m rounded up to a multiple of 4: a TMA stride is a multiple of 16 bytes
    int64_t num_sms;     // the SMs that a persistent kernel may use
    void* stream;        // cudaStream_t; ignored by the emulator
};

// The argument of the production kernels' launchers. Operands have a leading dimension for groups:
// A [groups_a, m, k], sfa [groups_a][ceil(k / 128)][sfa_stride], D [groups_a, m, n],
// B [groups, n, k], sfb [groups][ceil(n / 128)][ceil(k / 128)].
struct GroupedArgs : GemmArgs {
    int64_t a_stride, b_stride, d_stride;  // elements from row to row; group follows group without a gap
    // contiguous: each row's expert, negative for padding; masked: each group's valid rows; psum: the row at which each
    // group ends
    const int32_t* layout;
    int64_t groups;    // groups of B
    int64_t groups_a;  // groups of A: `groups` in the masked layout, otherwise 1
};

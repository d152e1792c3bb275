// What every launcher is given: one struct, the same for the GPU and for the emulator, filled by Python.
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
    int64_t num_sms;     // how many blocks a persistent kernel starts at most
    void* stream;        // cudaStream_t; ignored by the emulator
};

// ... and of the production kernels, for which A, D and A's scales may hold several groups, and B one a group:
// A [groups_a, m, k], sfa [groups_a][ceil(k / 128)][sfa_stride], B [groups, n, k], sfb [groups][...], D [groups_a, m,
// n].
struct GroupedArgs : GemmArgs {
    const int32_t* layout;  // contiguous: the expert of each row, or a negative number; masked: the rows of each group
    int64_t groups;         // of B
    int64_t groups_a;       // of A: `groups` where they are masked, or 1
};

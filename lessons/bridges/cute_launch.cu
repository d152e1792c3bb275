// The C interface of the kernels that compile.py writes: what measure.py calls through ctypes.
#include "bridge_cute.h"
#include "bridge_cute_unpinned.h"

// 0, or an error code of CUDA. sfa_stride: floats from one K block's scales of A to the next one's.
#define LAUNCHER(NAME)                                                                                                 \
    extern "C" int launch_##NAME(void* a, void* b, void* sfa, void* sfb, void* d, int m, int n, int k, int sfa_stride, \
                                 void* stream) {                                                                       \
        static NAME##_Kernel_Module_t module = [] {                                                                    \
            NAME##_Kernel_Module_t loaded;                                                                             \
            NAME##_Kernel_Module_Load(&loaded);                                                                        \
            return loaded;                                                                                             \
        }();                                                                                                           \
        const int blocks = k / 128, rows_b = (n + 127) / 128;                                                          \
        NAME##_Tensor_a_t tensor_a = {a, {m, k}, {k}};                                                                 \
        NAME##_Tensor_b_t tensor_b = {b, {n, k}, {k}};                                                                 \
        NAME##_Tensor_sfa_t tensor_sfa = {sfa, {m, blocks}, {sfa_stride}};                                             \
        NAME##_Tensor_sfb_t tensor_sfb = {sfb, {rows_b, blocks}, {blocks}};                                            \
        NAME##_Tensor_d_t tensor_d = {d, {m, n}, {n}};                                                                 \
        return cute_dsl_##NAME##_wrapper(&module, &tensor_a, &tensor_b, &tensor_sfa, &tensor_sfb, &tensor_d,           \
                                         static_cast<cudaStream_t>(stream));                                           \
    }

LAUNCHER(bridge_cute)
LAUNCHER(bridge_cute_unpinned)

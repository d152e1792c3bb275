"""The kernels that training calls: 1x128 scales on both operands, FP32 output, written or added to.

What belongs here: the kernel's own files (gemm_1d1d.cuh and those beside it), the `config` that one is
compiled with, the choice among the `candidates`, the checks of a call's `operands`, `launching`, and the
functions that users call, by the names of both generations of DeepGEMM (`products`). What does not: products
with 128x128 scales of B and BF16 output (`gemm_ladder.production`), and timing kernels
(`gemm_ladder.measure`).
"""

"""Casts to FP8 on a GPU, in one pass over the data: per token, per block and per channel, each also fused
with what comes before it in a model.

What belongs here: the kernels (cast_*.cuh), which `kernel` names and compiles, the checks of a call's
`operands`, `launching`, what is kept of both for later calls (`plans`), the same casts by torch's own
operators (`eager`), and the functions that users call, by names like those of serving engines (`functions`).
What does not: DeepGEMM's names for the casts, and casts to other groups than 128 (`gemm_ladder.utils.math`),
what the right bits are (`gemm_ladder.ref.fp8` and `ref.activations`), and timing
(`gemm_ladder.measure.casts`).
"""

"""What the right answer is, in Python.

    fp8          E4M3, and the casts that make the operands
    activations  what may come before a cast: SiLU-and-multiply, RMSNorm
    gemm         the product in float64: rung s0_numpy
    tensor_core  the product as a Hopper tensor core computes it, bit for bit
    lanes        vectors of the CPU, for tensor_core's inner loops
    layouts      where bytes lie in shared and global memory, and accumulators in registers
    metrics      how far two results are apart
    emulator     one Hopper SM on the CPU, which runs the kernels' own source

Import the module that you need: `from gemm_ladder.ref import fp8`.
"""

"""A kernel's machine code (SASS): reading it, and rewriting it.

What belongs here: `disassembly`, what cuobjdump and ptxas say of a built library, and `ffma`, the pass that
rewrites the control bits of the promotion's FFMAs (the rung s8_ffma_interleave). What does not: compiling
(`gemm_ladder.build`) and the kernels' own text. No GPU is needed for anything here.
"""

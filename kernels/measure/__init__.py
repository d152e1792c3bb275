"""Measurements: everything that is recorded in figures/data, and the commands that record it.

What belongs here: which products are measured (`shapes`), their operands and references (`problems`,
`operands`), what they are compared with (`peers`), how a kernel is timed (`timing`), how one run goes
(`session`) and what is written down of it (`records`); and the commands, one file each: `compare`,
`production_rows`, `host`, `interleave`, `cards` (with `ncu`), `precision`, `tensor_core`, `fences`. What does
not: drawing figures and writing tables from the data (`gemm_ladder.figures`), recording what happens inside a
kernel (`gemm_ladder.timeline`), and tests.
"""

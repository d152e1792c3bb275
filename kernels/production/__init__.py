"""The production kernels: the top rung, for any shape, dense and grouped.

What belongs here: the kernels' own files (gemm.cuh and those beside it), the `config` that one is compiled
with, the `candidates` among which there is a choice, what one is expected to cost (`prediction`, with what it
has learned from measurements in learned/), the `choice` among them, those that were measured to be the
fastest (`tuned`, tables/) and measuring more (`tuner`), saying why (`explain`), launching (`launching`) and
the C++ fast path that later calls take (`fast_path`). What does not: checking a call's operands
(`gemm_ladder.checks`), compiling ahead (`gemm_ladder.precompiling`), and timing kernels for tables and
figures, or to learn from them (`gemm_ladder.measure`). NOTES.md says what was tried on the kernels, and what
came of it.
"""

"""Measurements: everything that is recorded in figures/data, and the commands that record it.

What belongs here: which products are measured (`shapes`), their operands and references (`problems`,
`operands`), the libraries they are compared with (`peers`), how a kernel is timed (`timing`), how one product
is measured (`product`; for the rungs `ladder_rows`), what all commands share (`session`), and how results are
recorded (`records`). For the thousands of products with the weights of public models: `models`, `grid`,
`pool` (their operands), `cells` (one of them), `run` (many, resumable), `warming` (DeepGEMM's compilation)
and `verdicts` (what the times mean). For what the choice of a kernel learns from: `calibration` (which
configurations at which products, and the file of results), `table` (the same for DeepSeek-V3's table),
`configurations` (one product), `batches` (their compilation) and `learning` (the fit). And the commands, one
file each: `compare`, `production_rows`, `training`, `casts` (with `casts_peers`), `fp8_training` (with
`transformer` and `corpus`), `model` (with `model_cases`, `model_times` and `model_warming`; its layers are in
`decoder` and `arithmetic`, its whole model in `minilm`), `everywhere`, `bench`, `calibrate`, `host` (with
`starting`), `interleave`, `cards` (with `ncu`), `precision`, `tensor_core` (with `tensor_core_inputs`),
`mma_probe` (with `mma_inputs`), `fences`, and `carry_over` (with `same_code`), which lets a record stand
after a change that changes no machine code. What does not: the form of the recorded files
(`gemm_ladder.figures.rows`), drawing figures and writing tables from them (`gemm_ladder.figures`), recording
what happens inside a kernel (`gemm_ladder.timeline`), and tests.
"""

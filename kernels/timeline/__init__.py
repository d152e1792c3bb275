"""The timeline of a rung: who loads, multiplies, promotes and waits, and when.

What belongs here: recording a run on a GPU by stamps (`stamps`), making spans of time of the events of either
machine (`spans`), writing them for a trace viewer (`chrome_trace`), and the `command`. What does not: drawing
them (`gemm_ladder.figures.timeline`), and how long whole kernels take (`gemm_ladder.measure`).
"""

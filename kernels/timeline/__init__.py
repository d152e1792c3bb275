"""The timeline of a rung: who loads, multiplies, promotes and waits, and when.

What belongs here: recording a run on a GPU by stamps (`stamps`), turning the events of either machine into
    spans of time (`spans`), writing them for a trace viewer (`chrome_trace`), and the `command`. What does
    not: drawing them (`gemm_ladder.figures.timeline`), and how long whole kernels take
    (`gemm_ladder.measure`).
"""

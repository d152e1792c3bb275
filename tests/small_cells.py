"""Small products of each kind, for the tests of what measures a grid of them."""

from __future__ import annotations

from gemm_ladder.figures import measured
from gemm_ladder.measure.shapes import Cell, Shape, masked_cell

DENSE = Cell("dense", 1, Shape(33, 136, 256))
CONTIGUOUS = Cell("contiguous", 8, Shape(24, 128, 256))
MASKED = masked_cell(8, Shape(16, 72, 384), 40, "low")
SMALL = (DENSE, CONTIGUOUS, MASKED)
META = dict.fromkeys(measured.META_FIELDS, "1") | {"gpu": "GPU", "sources": "abcdef" * 10 + "0123"}

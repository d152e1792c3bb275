"""Products whose configuration is known: what is chosen for them, and times that were measured."""

from __future__ import annotations

from gemm_ladder.production.choice import choose
from gemm_ladder.production.config import Config

WEIGHTS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))


# kind, groups, rows (dense: in all; else of a group), n, k -> tile, what is shared. Where an H100 ran the
# choice and others, it is the best of them or within 3% of it.
CHOSEN = {
    ("dense", 1, 64, 2112, 7168): (64, 32, "K"),
    ("dense", 1, 64, 24576, 1536): (64, 96, "nothing"),
    ("dense", 1, 64, 32768, 512): (64, 128, "nothing"),
    ("dense", 1, 64, 7168, 16384): (64, 64, "nothing"),
    ("dense", 1, 64, 4096, 7168): (64, 32, "nothing"),
    ("dense", 1, 64, 7168, 2048): (64, 64, "nothing"),
    ("dense", 1, 128, 2112, 7168): (128, 32, "K"),
    ("dense", 1, 128, 24576, 1536): (128, 96, "nothing"),
    ("dense", 1, 128, 32768, 512): (128, 128, "nothing"),
    ("dense", 1, 128, 7168, 16384): (128, 64, "nothing"),
    ("dense", 1, 128, 4096, 7168): (128, 32, "nothing"),
    ("dense", 1, 128, 7168, 2048): (128, 64, "nothing"),
    ("dense", 1, 4096, 2112, 7168): (128, 192, "nothing"),
    ("dense", 1, 4096, 24576, 1536): (256, 128, "nothing"),
    ("dense", 1, 4096, 32768, 512): (256, 128, "nothing"),
    ("dense", 1, 4096, 7168, 16384): (256, 128, "nothing"),
    ("dense", 1, 4096, 4096, 7168): (256, 128, "nothing"),
    ("dense", 1, 4096, 7168, 2048): (256, 128, "nothing"),
    ("dense", 1, 192, 7168, 2048): (64, 192, "nothing"),
    ("dense", 1, 256, 2112, 7168): (128, 64, "K"),
    ("dense", 1, 256, 7168, 2048): (128, 112, "nothing"),
    ("dense", 1, 256, 24576, 1536): (128, 128, "nothing"),
    ("dense", 1, 256, 32768, 512): (128, 128, "nothing"),
    ("dense", 1, 384, 7168, 16384): (128, 192, "nothing"),
    ("dense", 1, 512, 2112, 7168): (128, 64, "nothing"),
    ("dense", 1, 512, 4096, 7168): (128, 128, "nothing"),
    ("dense", 1, 512, 7168, 2048): (256, 128, "nothing"),
    ("dense", 1, 512, 7168, 16384): (256, 112, "nothing"),
    ("dense", 1, 512, 24576, 1536): (128, 192, "nothing"),
    ("dense", 1, 768, 2112, 7168): (64, 192, "nothing"),
    ("dense", 1, 768, 7168, 2048): (128, 192, "nothing"),
    ("dense", 1, 1024, 7168, 16384): (256, 112, "nothing"),
    ("dense", 1, 1024, 24576, 1536): (256, 128, "nothing"),
    ("dense", 1, 1024, 32768, 512): (128, 192, "nothing"),
    ("dense", 1, 2048, 2112, 7168): (128, 192, "nothing"),
    ("dense", 1, 2048, 4096, 7168): (256, 128, "nothing"),
    ("dense", 1, 2048, 7168, 2048): (256, 128, "nothing"),
    ("dense", 1, 2048, 7168, 16384): (256, 128, "nothing"),
    ("dense", 1, 2048, 24576, 1536): (256, 128, "nothing"),
    ("dense", 1, 2048, 32768, 512): (128, 192, "nothing"),
    ("dense", 1, 3072, 2112, 7168): (128, 192, "nothing"),
    ("dense", 1, 8192, 2112, 7168): (128, 192, "nothing"),
    ("dense", 1, 8192, 4096, 7168): (256, 128, "nothing"),
    ("dense", 1, 8192, 7168, 2048): (256, 128, "nothing"),
    ("dense", 1, 8192, 7168, 16384): (256, 128, "nothing"),
    ("dense", 1, 8192, 24576, 1536): (256, 128, "nothing"),
    ("dense", 1, 8192, 32768, 512): (256, 128, "nothing"),
    ("contiguous", 4, 8192, 4096, 7168): (256, 128, "nothing"),
    ("contiguous", 4, 8192, 7168, 2048): (256, 128, "nothing"),
    ("contiguous", 8, 4096, 4096, 7168): (256, 128, "nothing"),
    ("contiguous", 8, 4096, 7168, 2048): (256, 128, "nothing"),
    ("contiguous", 32, 256, 4096, 7168): (128, 192, "A"),
    ("contiguous", 32, 256, 7168, 2048): (128, 192, "A"),
    ("masked", 1, 1024, 4096, 7168): (128, 160, "nothing"),
    ("masked", 1, 1024, 7168, 2048): (128, 192, "nothing"),
    ("masked", 2, 512, 4096, 7168): (128, 160, "nothing"),
    ("masked", 2, 512, 7168, 2048): (128, 192, "nothing"),
    ("masked", 4, 256, 4096, 7168): (64, 192, "nothing"),
    ("masked", 4, 256, 7168, 2048): (64, 256, "nothing"),
}


# Microseconds on an H100 (80GB HBM3, L2 dirty): m, n, k, tile, what is shared.
MEASURED = {
    (64, 2112, 7168, 64, 32, "K"): 10.67,
    (64, 4096, 7168, 64, 32, "nothing"): 14.5,
    (64, 4096, 7168, 64, 64, "nothing"): 14.7,
    (64, 7168, 2048, 64, 64, "nothing"): 8.91,
    (64, 7168, 16384, 64, 64, "nothing"): 48.94,
    (64, 24576, 1536, 64, 96, "nothing"): 18.29,
    (64, 32768, 512, 64, 128, "nothing"): 10.4,
    (128, 4096, 7168, 128, 32, "nothing"): 15.41,
    (128, 4096, 7168, 64, 64, "nothing"): 15.02,
    (128, 7168, 16384, 128, 64, "nothing"): 48.82,
    (128, 24576, 1536, 128, 96, "nothing"): 20.22,
    (128, 32768, 512, 128, 128, "nothing"): 11.62,
    (4096, 2112, 7168, 128, 192, "nothing"): 98.82,
    (4096, 2112, 7168, 128, 192, "B"): 101.41,
    (4096, 2112, 7168, 256, 128, "A"): 127.17,
    (4096, 24576, 1536, 256, 128, "nothing"): 236.71,
    (4096, 24576, 1536, 128, 192, "B"): 241.01,
    (4096, 32768, 512, 256, 128, "nothing"): 133.54,
    (4096, 32768, 512, 128, 192, "B"): 135.95,
    (4096, 7168, 16384, 256, 128, "nothing"): 670.83,
    (4096, 7168, 16384, 256, 128, "A"): 671.87,
    (4096, 7168, 16384, 128, 192, "B"): 735.59,
    (4096, 4096, 7168, 256, 128, "nothing"): 169.33,
    (4096, 4096, 7168, 128, 192, "nothing"): 196.1,
    (4096, 7168, 2048, 256, 128, "nothing"): 92.31,
    (4096, 7168, 2048, 128, 160, "nothing"): 93.6,
}


# The same for configurations with a tail: tiles of another size for the rows that whole waves leave over.
MEASURED_TAILS = {
    (4096, 2112, 7168, 128, 192, 256, 64): 87.5,
    (8192, 2112, 7168, 128, 192, 128, 64): 173.8,
    (2048, 2112, 7168, 128, 192, 128, 64): 49.0,
    (2048, 7168, 16384, 256, 128, 128, 128): 337.7,
    (2048, 7168, 2048, 256, 128, 256, 64): 49.5,
    (3072, 24576, 1536, 256, 128, 256, 64): 182.7,
    (6144, 4096, 7168, 256, 128, 128, 128): 254.9,
}


def chosen(kind: str, groups: int, rows: int, n: int, k: int) -> Config:
    """The configuration that a call gets. In the contiguous layout, its m counts the rows of all groups."""
    if kind == "masked":
        return choose(kind, 4096, n, k, groups, expected_m=rows)
    return choose(kind, rows * groups, n, k, groups)

"""How accurate and how fast a result is: what DeepGEMM's own tests and scripts measure with.

What belongs here: what has a counterpart in DeepGEMM's `testing`, under its name. What does not: what this
repository measures its tables with, which is in `gemm_ladder.measure`, and its own tests.
"""

from gemm_ladder import drop_in
from gemm_ladder.testing import numeric, utils
from gemm_ladder.testing.bench import bench, bench_kineto  # the function bench hides its module, as there
from gemm_ladder.testing.numeric import assert_bitwise_equal, calc_diff, count_bytes
from gemm_ladder.testing.utils import get_arch_major, ignore_env, test_filter

__all__ = [
    "assert_bitwise_equal",
    "bench",
    "bench_kineto",
    "calc_diff",
    "count_bytes",
    "get_arch_major",
    "ignore_env",
    "numeric",
    "test_filter",
    "utils",
]
__getattr__ = drop_in.elsewhere(__name__)

"""The casts that make operands, and the layouts of their scales, as DeepGEMM's `utils` has them.

What belongs here: what has a counterpart there, under its name. `math` has the casts; `layout` only names
what gemm_ladder.layout and gemm_ladder.settings have. What does not: anything that DeepGEMM has no name for.
"""

from gemm_ladder import drop_in
from gemm_ladder.utils import layout, math
from gemm_ladder.utils.layout import *  # noqa: F403
from gemm_ladder.utils.math import *  # noqa: F403

__all__ = ["layout", "math"]
__all__ += layout.__all__
__all__ += math.__all__
__getattr__ = drop_in.elsewhere(__name__)

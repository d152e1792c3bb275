# The public names of gemm_ladder: __init__.py imports them from here when they are first used.
from . import build as build
from . import lab as lab
from . import layers as layers
from . import ref as ref
from . import testing as testing
from . import utils as utils
from .api import fp8_fp4_gemm_nn as fp8_fp4_gemm_nn
from .api import fp8_fp4_gemm_nt as fp8_fp4_gemm_nt
from .api import fp8_fp4_gemm_tn as fp8_fp4_gemm_tn
from .api import fp8_fp4_gemm_tt as fp8_fp4_gemm_tt
from .api import fp8_gemm_nn as fp8_gemm_nn
from .api import fp8_gemm_nt as fp8_gemm_nt
from .api import fp8_gemm_tn as fp8_gemm_tn
from .api import fp8_gemm_tt as fp8_gemm_tt
from .api import fp8_m_grouped_gemm_nt_masked as fp8_m_grouped_gemm_nt_masked
from .api import gemm_fp8_fp8_bf16_nt as gemm_fp8_fp8_bf16_nt
from .api import m_grouped_fp8_fp4_gemm_nn_contiguous as m_grouped_fp8_fp4_gemm_nn_contiguous
from .api import m_grouped_fp8_fp4_gemm_nt_contiguous as m_grouped_fp8_fp4_gemm_nt_contiguous
from .api import m_grouped_fp8_fp4_gemm_nt_masked as m_grouped_fp8_fp4_gemm_nt_masked
from .api import m_grouped_fp8_gemm_nn_contiguous as m_grouped_fp8_gemm_nn_contiguous
from .api import m_grouped_fp8_gemm_nt_contiguous as m_grouped_fp8_gemm_nt_contiguous
from .api import m_grouped_fp8_gemm_nt_masked as m_grouped_fp8_gemm_nt_masked
from .api import (
    m_grouped_gemm_fp8_fp8_bf16_nt_contiguous as m_grouped_gemm_fp8_fp8_bf16_nt_contiguous,
)
from .api import m_grouped_gemm_fp8_fp8_bf16_nt_masked as m_grouped_gemm_fp8_fp8_bf16_nt_masked
from .arguments import ceil_div as ceil_div
from .casts.functions import per_block_quant_fp8 as per_block_quant_fp8
from .casts.functions import per_channel_group_quant_fp8 as per_channel_group_quant_fp8
from .casts.functions import per_token_group_quant_fp8 as per_token_group_quant_fp8
from .casts.functions import rms_norm_per_block_quant_fp8 as rms_norm_per_block_quant_fp8
from .casts.functions import (
    rms_norm_per_channel_group_quant_fp8 as rms_norm_per_channel_group_quant_fp8,
)
from .casts.functions import rms_norm_per_token_group_quant_fp8 as rms_norm_per_token_group_quant_fp8
from .casts.functions import silu_and_mul_per_block_quant_fp8 as silu_and_mul_per_block_quant_fp8
from .casts.functions import (
    silu_and_mul_per_channel_group_quant_fp8 as silu_and_mul_per_channel_group_quant_fp8,
)
from .casts.functions import silu_and_mul_per_token_group_quant_fp8 as silu_and_mul_per_token_group_quant_fp8
from .drop_in import install_as_deep_gemm as install_as_deep_gemm
from .errors import EmulatorError as EmulatorError
from .errors import GemmLadderError as GemmLadderError
from .lab.judging import judge as judge
from .layout import get_col_major_tma_aligned_tensor as get_col_major_tma_aligned_tensor
from .layout import (
    get_mn_major_tma_aligned_packed_ue8m0_tensor as get_mn_major_tma_aligned_packed_ue8m0_tensor,
)
from .layout import get_mn_major_tma_aligned_tensor as get_mn_major_tma_aligned_tensor
from .layout import get_tma_aligned_size as get_tma_aligned_size
from .layout import transform_sf_into_required_layout as transform_sf_into_required_layout
from .precompiling import precompile as precompile
from .production.config import Config as Config
from .production.tuner import tune as tune
from .ref.emulator import emulator as emulator
from .rungs import rungs as rungs
from .settings import get_m_alignment_for_contiguous_layout as get_m_alignment_for_contiguous_layout
from .settings import get_mk_alignment_for_contiguous_layout as get_mk_alignment_for_contiguous_layout
from .settings import get_num_sms as get_num_sms
from .settings import get_pdl as get_pdl
from .settings import get_tc_util as get_tc_util
from .settings import (
    get_theoretical_mk_alignment_for_contiguous_layout as get_theoretical_mk_alignment_for_contiguous_layout,
)
from .settings import set_block_size_multiple_of as set_block_size_multiple_of
from .settings import set_ignore_compile_dims as set_ignore_compile_dims
from .settings import set_mk_alignment_for_contiguous_layout as set_mk_alignment_for_contiguous_layout
from .settings import set_num_sms as set_num_sms
from .settings import set_pdl as set_pdl
from .settings import set_tc_util as set_tc_util
from .settings import use_deterministic_algorithms as use_deterministic_algorithms
from .testing import bench as bench
from .testing import bench_kineto as bench_kineto
from .testing import calc_diff as calc_diff
from .training.products import k_grouped_fp8_gemm_nt_contiguous as k_grouped_fp8_gemm_nt_contiguous
from .training.products import k_grouped_wgrad_gemm_fp8_fp8_fp32_nt as k_grouped_wgrad_gemm_fp8_fp8_fp32_nt
from .training.products import wgrad_gemm_fp8_fp8_fp32_nt as wgrad_gemm_fp8_fp8_fp32_nt
from .utils import align as align
from .utils import cast_back_from_fp8 as cast_back_from_fp8
from .utils import ceil_to_ue8m0 as ceil_to_ue8m0
from .utils import get_k_alignment_for_contiguous_layout as get_k_alignment_for_contiguous_layout
from .utils import pack_ue8m0_to_int as pack_ue8m0_to_int
from .utils import per_block_cast_to_fp8 as per_block_cast_to_fp8
from .utils import per_channel_cast_to_fp8 as per_channel_cast_to_fp8
from .utils import per_custom_dims_cast_to_fp8 as per_custom_dims_cast_to_fp8
from .utils import per_token_cast_to_fp8 as per_token_cast_to_fp8
from .utils import unpack_ue8m0_from_int as unpack_ue8m0_from_int

__version__: str

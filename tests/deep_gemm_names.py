"""The names of DeepGEMM's interface, and those that are not here: a table in kernels/deep_gemm/README.md.

python tests/deep_gemm_names.py    # write the table anew
"""

from __future__ import annotations

import ast
from pathlib import Path

import gemm_ladder
from gemm_ladder.figures.readme import rewrite
from repository import REPOSITORY

README = REPOSITORY / "kernels" / "deep_gemm" / "README.md"

# The public names of DeepGEMM 2.8.1: of its package, of its utils and of its testing.
SECOND_GENERATION = """
NVFP4SymmBuffer SymmBuffer align assert_bitwise_equal batched_symm batched_syrk bench bench_kineto
bf16_gemm_nn bf16_gemm_nt bf16_gemm_tn bf16_gemm_tt bf16_mega_gate bf16_mega_moe calc_diff
cast_back_from_fp4 cast_back_from_fp8 ceil_div ceil_to_ue8m0 count_bytes cublaslt_gemm_nn cublaslt_gemm_nt
cublaslt_gemm_tn cublaslt_gemm_tt cublaslt_nvfp4_gemm_nt destroy_localizer einsum empty_suppress epilogue
fp4_fp4_mega_moe fp4_gemm_nt fp8_einsum fp8_fp4_gemm_nn fp8_fp4_gemm_nt fp8_fp4_gemm_tn fp8_fp4_gemm_tt
fp8_fp4_mega_moe fp8_fp4_mqa_logits fp8_fp4_paged_mqa_logits fp8_fp4_paged_sparse_mqa_logits
fp8_fp4_sparse_mqa_logits fp8_gemm_nn fp8_gemm_nt fp8_gemm_tn fp8_gemm_tt get_arch_major
get_block_m_for_mega_moe get_block_m_for_nvfp4_mega_moe get_k_alignment_for_contiguous_layout
get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor get_m_alignment_for_contiguous_layout
get_mk_alignment_for_contiguous_layout get_mn_major_tma_aligned_packed_ue8m0_tensor
get_mn_major_tma_aligned_tensor get_mqa_logits_metadata get_num_locality_domains get_num_sms
get_paged_mqa_logits_metadata get_paged_sparse_mqa_logits_metadata get_pdl get_sparse_mqa_logits_metadata
get_symm_buffer_for_mega_moe get_tc_util get_theoretical_mk_alignment_for_contiguous_layout
get_tma_aligned_size ignore_env init_dist is_localization_available is_localized
k_grouped_bf16_gemm_tn_contiguous k_grouped_fp4_gemm_nt_contiguous k_grouped_fp8_gemm_nt_contiguous
k_grouped_fp8_gemm_tn_contiguous legacy locality_domain localize m_grouped_bf16_gemm_nn_contiguous
m_grouped_bf16_gemm_nt_contiguous m_grouped_bf16_gemm_nt_masked m_grouped_fp4_gemm_nt_contiguous
m_grouped_fp4_gemm_nt_masked m_grouped_fp8_fp4_gemm_nn_contiguous m_grouped_fp8_fp4_gemm_nt_contiguous
m_grouped_fp8_fp4_gemm_nt_masked m_grouped_fp8_gemm_nn_contiguous m_grouped_fp8_gemm_nt_contiguous
m_grouped_fp8_gemm_nt_masked mega_mhc nvfp4_mega_moe pack_ue8m0_to_int per_block_cast_to_fp8
per_channel_cast_to_fp8 per_custom_dims_cast_to_fp8 per_token_cast_to_fp4 per_token_cast_to_fp8
per_token_cast_to_nvfp4 set_block_size_multiple_of set_ignore_compile_dims
set_mk_alignment_for_contiguous_layout set_num_sms set_pdl set_tc_util shutdown suppress_stdout_stderr
test_filter tf32_hc_prenorm_gemm transform_sf_into_required_layout transform_weights_for_mega_moe
transpose_packed_fp4 uneven_all_gather unpack_e4m3_sf_from_int unpack_ue8m0_from_int
use_deterministic_algorithms
""".split()  # noqa: SIM905 - a list would have a line for each
# Those of its first release, and an alias of the versions between, that 2.8.1 has no more.
EARLIER = """
fp8_m_grouped_gemm_nt_masked gemm_fp8_fp8_bf16_nt get_col_major_tma_aligned_tensor
k_grouped_wgrad_gemm_fp8_fp8_fp32_nt m_grouped_gemm_fp8_fp8_bf16_nt_contiguous
m_grouped_gemm_fp8_fp8_bf16_nt_masked wgrad_gemm_fp8_fp8_fp32_nt
""".split()  # noqa: SIM905

# The arguments of its products on Hopper, in order; those after the bar have a default.
_RECIPES = "recipe recipe_a recipe_b"
ARGUMENTS = {
    "fp8_gemm_nt fp8_gemm_nn fp8_gemm_tn fp8_gemm_tt "
    "fp8_fp4_gemm_nt fp8_fp4_gemm_nn fp8_fp4_gemm_tn fp8_fp4_gemm_tt": (
        f"a b d | c {_RECIPES} compiled_dims disable_ue8m0_cast alpha"
    ),
    "m_grouped_fp8_gemm_nt_contiguous m_grouped_fp8_fp4_gemm_nt_contiguous": (
        f"a b d grouped_layout | {_RECIPES} compiled_dims disable_ue8m0_cast use_psum_layout "
        "ensure_zero_padding expected_m_for_psum_layout"
    ),
    "m_grouped_fp8_gemm_nn_contiguous m_grouped_fp8_fp4_gemm_nn_contiguous": (
        f"a b d grouped_layout | {_RECIPES} compiled_dims disable_ue8m0_cast use_psum_layout "
        "ensure_zero_padding"
    ),
    "m_grouped_fp8_gemm_nt_masked m_grouped_fp8_fp4_gemm_nt_masked": (
        f"a b d masked_m expected_m | {_RECIPES} compiled_dims disable_ue8m0_cast"
    ),
    "k_grouped_fp8_gemm_nt_contiguous": (
        "a b d ks_cpu grouped_layout | c recipe compiled_dims use_psum_layout"
    ),
    # Its first release
    "gemm_fp8_fp8_bf16_nt": "lhs rhs out |",
    "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous": "lhs rhs out m_indices |",
    "m_grouped_gemm_fp8_fp8_bf16_nt_masked": "lhs rhs out masked_m expected_m |",
    "wgrad_gemm_fp8_fp8_fp32_nt": "lhs rhs out |",
    "k_grouped_wgrad_gemm_fp8_fp8_fp32_nt": "lhs rhs out batch_sizes |",
}

# Why names are not here: parts of names, and what they stand for. The first one that is found counts.
REASONS = {
    "Einsums and the scores of attention are other kernels than a matrix product.": ("einsum", "mqa_logits"),
    "Hopper's tensor cores have no FP4.": ("fp4", "fp4_fp4", "NVFP4", "nvfp4", "unpack_e4m3_sf"),
    "These belong to kernels that fuse a whole layer: hyperconnections, gating, a mixture of experts.": (
        *("mega_m", "mega_gate", "SymmBuffer"),
    ),
    "Their operands are not FP8.": ("bf16", "cublaslt", "batched_sy", "tf32"),
    "They are for GPUs after Hopper, whose tensor cores read FP8 operands that are contiguous along m and n, "
    "and scales in UE8M0.": ("k_grouped_fp8_gemm_tn", "k_grouped_mn_major"),
    "They place weights in the parts of a GPU that has several.": ("locali",),
    "Triton kernels for GPUs before Hopper.": ("legacy",),
    "The products on Hopper have no epilogue.": ("epilogue",),
    "Helpers of DeepGEMM's own tests, and the end of its own library.": (
        *("init_dist", "uneven_all_gather", "suppress", "shutdown"),
    ),
}


def of_sources(folder: Path) -> set[str]:
    """The public names of a DeepGEMM, as its Python says without being imported.

    Args:
        folder: the package, as in vLLM's wheel.
    """
    found = set()
    for file in ("", "utils", "utils/layout.py", "utils/math.py", "testing/*.py"):
        for path in folder.glob(file if file.endswith(".py") else f"{file}/__init__.py".lstrip("/")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.level:
                    found |= {alias.asname or alias.name for alias in node.names}
                elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.col_offset:
                    found.add(node.name)
                elif isinstance(node, ast.Assign) and not node.col_offset:
                    found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    modules = {"*", "bench", "layout", "math", "numeric", "testing", "utils", "persistent_envs"}
    return {name for name in found - modules if not name.startswith("_")} | (found & {"bench"})


def is_here(name: str) -> bool:
    """Whether this package has a name, in itself, in utils or in testing."""
    return any(hasattr(module, name) for module in (gemm_ladder, gemm_ladder.utils, gemm_ladder.testing))


def reason(name: str) -> str:
    """Why a name is not here. KeyError if REASONS does not know."""
    for why, parts in REASONS.items():
        if any(part in name for part in parts):
            return why
    raise KeyError(name)


def table() -> str:
    """The names that are not here, by their reasons, as Markdown."""
    missing = [name for name in (*SECOND_GENERATION, *EARLIER) if not is_here(name)]
    lines = ["| names | why they are not here |", "|---|---|"]
    for why in REASONS:
        names = [f"`{name}`" for name in missing if reason(name) == why]
        assert names, f"no name is missing because: {why}"
        lines.append(f"| {', '.join(names)} | {why} |")
    return "\n".join(lines)


if __name__ == "__main__":
    README.write_text(rewrite(README.read_text(encoding="utf-8"), "table-names", table()), encoding="utf-8")

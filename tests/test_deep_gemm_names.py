"""deep_gemm_names.py has all names of DeepGEMM, and the table in README is made from them."""

from __future__ import annotations

import pytest
from deep_gemm_names import EARLIER, README, SECOND_GENERATION, is_here, of_sources, table
from gemm_ladder import drop_in
from gemm_ladder.figures.readme import rewrite


def test_the_table_is_made_from_what_is_not_here() -> None:
    text = README.read_text(encoding="utf-8")
    assert rewrite(text, "table-names", table()) == text, "python tests/deep_gemm_names.py writes it anew"


def test_earlier_names_are_all_here() -> None:
    assert not [name for name in EARLIER if not is_here(name)]


def test_names_of_a_real_deep_gemm() -> None:
    folder = drop_in.folder_in_vllm()
    if folder is None:
        pytest.skip("needs vllm, which is not installed")
    assert sorted(of_sources(folder / "deep_gemm")) == SECOND_GENERATION

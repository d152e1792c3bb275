"""deep_gemm_names.py has all names of DeepGEMM, and the table in README is made from them."""

from __future__ import annotations

import inspect
import re

import gemm_ladder
import pytest
from deep_gemm_names import ARGUMENTS, EARLIER, README, SECOND_GENERATION, is_here, of_sources, table
from gemm_ladder import drop_in
from gemm_ladder.figures.readme import rewrite


def test_the_table_is_made_from_what_is_not_here() -> None:
    text = README.read_text(encoding="utf-8")
    assert rewrite(text, "table-names", table()) == text, "python tests/deep_gemm_names.py writes it anew"


def test_earlier_names_are_all_here() -> None:
    assert not [name for name in EARLIER if not is_here(name)]


OTHER_NAMES = {"ks_cpu": "ks", "grouped_layout": "ks_tensor"}  # both are accepted


@pytest.mark.parametrize("names", ARGUMENTS)
def test_arguments(names: str) -> None:
    """Calls bind to the same parameters, by their order and by their names."""
    needed, optional = (part.split() for part in ARGUMENTS[names].split("|"))
    everything = [*needed, *optional]
    for name in names.split():
        for product in (name, re.sub("_(nn|tn|tt)", "_nt", name)):  # the others pass their arguments on to nt
            signature = inspect.signature(getattr(gemm_ladder, product))
            signature.bind(*needed)
            by_order = signature.bind(*everything).arguments
            by_name = signature.bind(**{argument: argument for argument in everything}).arguments
        assert all(parameter in (given, OTHER_NAMES.get(given)) for parameter, given in by_order.items())
        assert all(parameter == given for parameter, given in by_name.items())


def test_names_of_a_real_deep_gemm() -> None:
    folder = drop_in.folder_in_vllm()
    if folder is None:
        pytest.skip("needs vllm, which is not installed")
    assert sorted(of_sources(folder / "deep_gemm")) == SECOND_GENERATION

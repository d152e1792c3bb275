"""Layers that several processes share: 2 and 4 of them with gloo, and on two GPUs with NCCL."""

from __future__ import annotations

from pathlib import Path

import parallel_runs
import pytest
import torch
import trained_cases
from gemm_ladder.errors import InputError
from gemm_ladder.layers import ColumnParallelFp8Linear, ParallelFp8Experts

each_case = pytest.mark.parametrize("case", trained_cases.CASES)


@pytest.fixture(scope="module")
def on_cpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gloo")
    parallel_runs.run(folder, "gloo", 2, 4)
    return folder


@pytest.fixture(scope="module")
def on_gpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"needs two GPUs: torch finds {count}")
    folder = tmp_path_factory.mktemp("nccl")
    parallel_runs.run(folder, "nccl", 2)
    return folder


@each_case
@pytest.mark.parametrize("size", [2, 4])
def test_on_cpus(case: str, size: int, on_cpus: Path) -> None:
    assert parallel_runs.found(on_cpus, size, case) == [""] * size


@pytest.mark.gpu
@each_case
def test_on_two_gpus(case: str, on_gpus: Path) -> None:
    assert parallel_runs.found(on_gpus, 2, case) == [""] * 2


def test_without_a_group() -> None:
    for make in (lambda: ParallelFp8Experts(4, 128, 128), lambda: ColumnParallelFp8Linear(128, 128)):
        with pytest.raises(InputError, match=r"init_process_group is needed before a layer is shared"):
            make()

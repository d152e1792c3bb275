"""Errors that come from another process are what they were there."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
from gemm_ladder import build, errors
from gemm_ladder.sass.ffma import UnknownCodeError

ERRORS = (
    errors.InputError("k is 5"),
    errors.UnknownRungError("there is no rung s9"),
    errors.LaunchError("refused"),
    errors.BuildError("It does not build:", "the compiler's\nwords"),
    errors.BuildError("It cannot be kept.", ""),
    errors.ToolchainError("There is no nvcc", "install it"),
    errors.ToolchainError("There is no nvcc"),
    UnknownCodeError("The library is not rewritten."),
)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_errors_survive_pickling(error: errors.GemmLadderError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.args, vars(again), str(again)) == (error.args, vars(error), str(error))


def test_messages() -> None:
    assert [str(error) for error in ERRORS[3:7]] == [
        "It does not build:\nthe compiler's\nwords",
        "It cannot be kept.",
        "There is no nvcc: install it",
        "There is no nvcc",
    ]


def fail() -> None:
    raise build.BuildError("It does not build:", "the compiler's words")


def test_process_pool_hands_a_build_error_on() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool, pytest.raises(build.BuildError) as caught:
        pool.submit(fail).result(timeout=60)
    assert (caught.value.sentence, caught.value.log) == ("It does not build:", "the compiler's words")

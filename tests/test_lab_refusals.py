"""What `lab` says of input that it cannot use: one sentence, with what was given and what is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gemm_ladder import lab
from gemm_ladder.errors import BuildError, InputError
from gemm_ladder.lab.command import main

SOURCE = "#include <cuda_runtime.h>\n__global__ void one(float* d) {}\n__global__ void two(float* d) {}\n"
D = np.zeros(1, np.float32)


def test_a_kernel_that_is_not_there() -> None:
    for name in ("foo", "foo<1>", "space::foo"):
        said = rf"^The source has no kernel {name}; its kernels are one, two\.$"
        with pytest.raises(InputError, match=said):
            lab.run(SOURCE, D, kernel=name)


def test_an_error_in_a_kernel_that_is_there_stays_the_compilers() -> None:
    with pytest.raises(BuildError, match="undeclared"):
        lab.run(SOURCE.replace("one(float* d) {}", "one(float* d) { undeclared(); }"), D, kernel="one")


@pytest.mark.parametrize(
    ("header", "library"),
    [("cute/tensor.hpp", "CUTLASS"), ("cuda/std/array", "libcu++"), ("mma.h", "nvcuda::wmma")],
)
def test_a_library_that_the_emulator_does_not_have(header: str, library: str) -> None:
    with pytest.raises(InputError) as caught:
        lab.run(f"#include <{header}>\n{SOURCE}", D, kernel="one")
    said = str(caught.value)
    assert said.startswith(f"The source includes {header}, of {library}, which the emulator does not have")
    assert said.endswith("are needed.")


def test_the_type_of_an_array_is_called_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "k.cu"
    path.write_text(SOURCE)
    with pytest.raises(InputError, match=r"^d is bfloat16; float32 is needed\.$"):
        main(["run", str(path), "--kernel", "one", "bfloat16[4]=nan"])


def test_a_number_of_os_threads_for_speed() -> None:
    with pytest.raises(InputError, match=r"^threads is 0; a positive number of OS threads is needed\.$"):
        main(["speed", "--threads", "0"])


@pytest.mark.parametrize(("command", "option"), [("view", "seed"), ("step", "seed"), ("view", "shape")])
def test_an_option_that_a_script_does_not_use(command: str, option: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise AssertionError('the script has run')\n")
    with pytest.raises(
        InputError, match=rf"^--{option} is 3; a script chooses its own {option}s: a change there"
    ):
        main([command, str(script), f"--{option}", "3"])


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(TypeError, match="no keyword argument 'gird'"):
        lab.run("__global__ void k() {}", gird=4)

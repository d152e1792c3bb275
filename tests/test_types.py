"""Types: mypy is strict with the public modules, and finds the package where it is installed."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from repository import REPOSITORY, build_wheel

CACHE = REPOSITORY / ".mypy_cache"
# Where the public names of gemm_ladder are defined, and what those modules are made of.
STRICT = (
    *("gemm_ladder", "gemm_ladder.api", "gemm_ladder.arguments", "gemm_ladder.checks", "gemm_ladder.errors"),
    *(f"gemm_ladder.checks.{module}" for module in ("grouped", "layouts", "products", "rules", "uncompiled")),
    *("gemm_ladder.launch", "gemm_ladder.layout", "gemm_ladder.precompiling", "gemm_ladder.rungs"),
    *("gemm_ladder.calls", "gemm_ladder.ops", "gemm_ladder.scales"),
    *("gemm_ladder.settings", "gemm_ladder.drop_in", "gemm_ladder.ref.emulator"),
    *("gemm_ladder.testing", *(f"gemm_ladder.testing.{module}" for module in ("bench", "numeric", "utils"))),
    *("gemm_ladder.utils", "gemm_ladder.utils.layout", "gemm_ladder.utils.math"),
    *(
        f"gemm_ladder.production.{module}"
        for module in ("choice", "config", "fast_path", "launching", "prediction", "tuned")
    ),
    *(
        f"gemm_ladder.training.{module}"
        for module in ("candidates", "config", "launching", "operands", "products")
    ),
    *(
        f"gemm_ladder.casts.{module}"
        for module in ("eager", "functions", "kernel", "launching", "operands", "plans")
    ),
    *(
        f"gemm_ladder.layers.{module}"
        for module in (
            *("combining", "conversion", "dispatching", "distributed_checkpoints", "expert_products"),
            *("experts", "frozen", "linear"),
            *(
                "own_kernels",
                "parallel_experts",
                "parallel_linear",
                "parallel_products",
                "precompiling",
                "products",
                "ranks",
                "reading",
                "report",
                "routing",
                "row_format",
                "saying",
                "silu_backward",
                "single_experts",
                "trying",
                "turning",
            ),
            "weights",
        )
    ),
    *("gemm_ladder.production.tuner", "gemm_ladder.build", "gemm_ladder.build.library"),
    "gemm_ladder.lab",
    *(
        f"gemm_ladder.lab.{module}"
        for module in (
            *("agreement", "arrays", "cases", "command", "diagnosis", "given", "judging", "judging_on_gpu"),
            *("literals", "mistakes", "operands", "parameters", "places", "running", "sources"),
            *("surroundings", "template", "tensor_maps", "verdicts"),
        )
    ),
)
CLIENT = """\
import gemm_ladder
import torch

x, w = torch.randn(64, 512), torch.randn(256, 512)
a, sfa = gemm_ladder.utils.per_token_cast_to_fp8(x)
lhs = (a, gemm_ladder.get_mn_major_tma_aligned_tensor(sfa))
d = torch.empty(64, 256, dtype=torch.bfloat16)
gemm_ladder.fp8_gemm_nt(lhs, gemm_ladder.utils.per_block_cast_to_fp8(w), d)
gemm_ladder.rungs["s1_naive"](lhs, gemm_ladder.utils.per_block_cast_to_fp8(w), d)
gemm_ladder.fp8_gemm_nt(lhs, w, d)
"""


def mypy(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--cache-dir", CACHE, *arguments]
    environment = {"MYPYPATH": str(path)} if path else {}
    config = ["--config-file", str(REPOSITORY / "pyproject.toml")]
    return subprocess.run(
        [*command, *config], capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )


@pytest.mark.slow
def test_strict(tmp_path: Path) -> None:
    """The sources, laid out as an installed package is: mypy does not know of pyproject.toml's folders."""
    package = tmp_path / "gemm_ladder"
    package.mkdir()
    for path in [*(REPOSITORY / "kernels").iterdir(), REPOSITORY / "ref", REPOSITORY / "figures"]:
        (package / path.name).symlink_to(path)
    checked = mypy(*(f"-m{module}" for module in STRICT), path=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
def test_a_client(tmp_path: Path) -> None:
    """mypy sees the types of an installed gemm_ladder: nothing but the client's one mistake is wrong."""
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    zipfile.ZipFile(build_wheel(tmp_path)).extractall(site)
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (tmp_path / "client.py").write_text(CLIENT)
    checked = mypy("--python-executable", python, tmp_path / "client.py")
    (error,) = [line for line in checked.stdout.splitlines() if ": error: " in line]
    assert "client.py:10" in error and 'Argument 2 to "fp8_gemm_nt" has incompatible type "Tensor"' in error

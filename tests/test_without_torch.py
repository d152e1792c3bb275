"""The lab on a machine without torch: a kernel is built, run on the emulator and judged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import numpy as np
import gemm_ladder as gl
from gemm_ladder import lab
from gemm_ladder.arguments import GemmArgs
from gemm_ladder.lab.operands import normal

operands = normal(np.random.default_rng(3), 64, 128, 256)
sfa, d = np.ascontiguousarray(operands.sfa.T), np.zeros((64, 128), np.uint16)
arrays = (operands.a, sfa, operands.b, operands.sfb, d)
args = GemmArgs(*(array.ctypes.data for array in arrays), 64, 128, 256, 64, 4)
said = gl.ref.emulator.launch(gl.rungs["s3_wgmma"].build("emulator").lib, args)
assert said is None, said
np.testing.assert_array_equal(d, operands.expected_bits("s3_wgmma"))

x, y = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
source = '''
#include <cuda_runtime.h>
__global__ void twice(const float* x, float* y) { y[threadIdx.x] = 2 * x[threadIdx.x]; }
'''
assert lab.sweep(source, x, y, block=32, seeds=3).sound
np.testing.assert_array_equal(y, 2 * x)

verdict = gl.judge(gl.rungs["s4_tma"].path, n_multiple=8, k_multiple=128, seconds=5)
assert verdict.right and verdict.runs > 3, verdict
assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_a_kernel_is_built_run_and_judged(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch here')\n")
    # Its cache folder is its own, so that nothing is there that torch has built.
    found = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": found, "GEMM_LADDER_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    logs = [log.read_text() for log in tmp_path.glob("cache/*/build.log")]
    assert len(logs) >= 4 and not any("ninja" in log for log in logs)
    doctor = subprocess.run(
        [sys.executable, "-m", "gemm_ladder", "doctor"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert doctor.returncode == 0, doctor.stdout
    assert "Kernels on the emulator: yes." in doctor.stdout and "--  torch" in doctor.stdout

"""The lab: any CUDA kernel for Hopper, run from its own source on the CPU emulator or on a GPU, and judged.

What belongs here: running a kernel with arrays (`running`, `launching`, `results`, `sources`, `parameters`,
`arrays`, `tensor_maps`), trying many schedules of it, what a launch leaves behind (`recording`) and the room
that shows it (`viewer`); saying whether a rung is right (`judging`, `judging_on_gpu`, `verdicts`): the
products that it has to compute (`operands`, `bf16`, `cases`), the poison around them (`surroundings`), what
counts as right (`agreement`), where and what wrong values are (`places`, `diagnosis`, `mistakes`; of a kernel
that is no rung, `comparison`); how fast the emulator is (`speed`); and the command (`command`, `literals`,
`template`). What does not: the emulator itself (`gemm_ladder.ref.emulator`), building a library
(`gemm_ladder.build`), and the rungs.

    from gemm_ladder import lab
    lab.run("my.cu", x, out, 64, grid=4, block=128)  # NumPy arrays: the emulator
    lab.run("my.cu", x.cuda(), out.cuda(), 64, grid=4, block=128)  # Hopper tensors: the GPU
    lab.sweep("my.cu", x, out, 64, grid=4, block=128, seeds=40)  # does the answer depend on the schedule?
    lab.compare(out, expected)  # which values are wrong, and what they look like
    lab.judge("my_rung.cu")  # a file like those in stages/: is it right?
    result = lab.run("my.cu", x, out, 64, grid=4, block=128, record=True)
    lab.view(result, path="my.html")  # a page that shows what happened
    lab.Stepper(result).next("mbarrier_phase")  # one event at a time

Importing this needs neither torch nor CUDA. ref/emulator/README.md says what the emulator models, and every
fault that it names.
"""

from gemm_ladder.lab.comparison import Comparison, compare
from gemm_ladder.lab.judging import judge
from gemm_ladder.lab.launching import Options
from gemm_ladder.lab.recording import Recording
from gemm_ladder.lab.results import Result, Sweep
from gemm_ladder.lab.running import run, sweep
from gemm_ladder.lab.tensor_maps import TensorMap, tensor_map
from gemm_ladder.lab.verdicts import Verdict
from gemm_ladder.lab.viewer.page import view
from gemm_ladder.lab.viewer.stepper import Stepper

__all__ = [
    "Comparison",
    "Options",
    "Recording",
    "Result",
    "Stepper",
    "Sweep",
    "TensorMap",
    "Verdict",
    "compare",
    "judge",
    "run",
    "sweep",
    "tensor_map",
    "view",
]

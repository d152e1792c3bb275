"""The command line: python -m gemm_ladder COMMAND."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "compare": "check every rung against the reference; with a Hopper GPU, time it beside libraries",
    "production": "check and time the production kernels beside libraries (Hopper GPU)",
    "everywhere": "the same at the weights of public models: hundreds of products, three states (Hopper GPU)",
    "bench": "time your own products, or a model's, beside libraries, and say what it means (Hopper GPU)",
    "training": "check and time the training kernels beside DeepGEMM's, and tune them (Hopper GPU)",
    "casts": "check and time the casts to FP8 beside a copy, an empty kernel and libraries (Hopper GPU)",
    "parallel": "check and time layers that GPUs share, beside one (two Hopper GPUs)",
    "train": "train a small transformer with FP8 linears and with BF16 ones, and compare (Hopper GPU)",
    "model": "check and time layers and a whole model in FP8 beside BF16 and DeepGEMM (Hopper GPU)",
    "host": "time what a call costs the host, and kernels' builds, loads and warm-up (Hopper GPU)",
    "interleave": "time rung 8 in each of its modes (Hopper GPU)",
    "cards": "renew each rung's card: its resources, its machine code and, with --ncu, what limits it",
    "precision": "measure what is lost when promotion comes late (Hopper GPU)",
    "tensor-core": "compare the tensor cores with the emulator's model of them, bit for bit (Hopper GPU)",
    "mma-probe": "compare every matrix instruction with its model, bit for bit (Hopper GPU)",
    "fences": "compare variants of rung s5's fences: their machine code and, on a Hopper GPU, their times",
    "timeline": "record who loads, multiplies, promotes and waits in a rung, and when",
    "lab": "run any kernel with your arrays, judge a rung, begin a new one; needs no GPU",
    "calibrate": "measure thousands of configurations, and learn from them how to choose (Hopper GPU)",
    "explain": "say which production kernel a product gets, and how fast it should be; needs no GPU",
    "tune": "measure which production kernel is the fastest for a product, and keep the answer (Hopper GPU)",
    "lessons": "lay out your own copy of the lessons, without outputs and answers, and say how far you are",
    "doctor": "say what this machine has, what it lacks and how to get it",
}

# The module, below gemm_ladder, whose main() runs each command.
MODULES = {
    "compare": "measure.compare",
    "production": "measure.production_rows",
    "everywhere": "measure.everywhere",
    "bench": "measure.bench",
    "training": "measure.training",
    "casts": "measure.casts",
    "parallel": "measure.parallel",
    "train": "measure.fp8_training",
    "model": "measure.model",
    "host": "measure.host",
    "interleave": "measure.interleave",
    "cards": "measure.cards",
    "precision": "measure.precision",
    "tensor-core": "measure.tensor_core",
    "mma-probe": "measure.mma_probe",
    "fences": "measure.fences",
    "timeline": "timeline.command",
    "lab": "lab.command",
    "calibrate": "measure.calibrate",
    "explain": "production.explain",
    "tune": "production.tuner",
    "lessons": "figures.lessons",
    "doctor": "build.doctor",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the command and its arguments; the process's own if None.

    Returns:
        The exit status. 1: a result is wrong or not as predicted, or doctor finds that the emulator cannot
        run. 2: the command could not be carried out; stderr has the reason in one sentence, and the
        compiler's output if there is any. 130: interrupted. 141: stdout was closed. Else 0.
    """
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print("usage: python -m gemm_ladder COMMAND [--help]\n")
        print("\n".join(f"  {name:11}  {what}" for name, what in COMMANDS.items()))
        return 0
    if command not in COMMANDS:
        return _refuse(f"{command!r} is not a command; one of {', '.join(COMMANDS)} is needed")

    from gemm_ladder.build import BuildError, ToolchainError
    from gemm_ladder.errors import GemmLadderError

    # Most commands measure, and compilers that run meanwhile would disturb that.
    os.environ.setdefault("GEMM_LADDER_BACKGROUND", "0")
    try:
        return importlib.import_module(f"gemm_ladder.{MODULES[command]}").main(rest)
    except (GemmLadderError, ToolchainError, BuildError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # e.g. `| head` has read enough; what is still buffered must not raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _refuse(reason: str) -> int:
    print(f"gemm_ladder: {reason}", file=sys.stderr)
    return 2

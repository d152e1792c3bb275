"""The command line: python -m gemm_ladder COMMAND."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "compare": "check every rung against the reference, and time it where there is a Hopper GPU",
    "production": "check and time the production kernels at every row of the table, on a Hopper GPU",
    "host": "time what a call costs the host, and a kernel's first build, on a Hopper GPU",
    "interleave": "time rung 6 in each of its modes, on a Hopper GPU",
    "cards": "renew each rung's card: its resources, its machine code and, with --ncu, what limits it",
    "precision": "measure what is lost where promotion comes late, on a Hopper GPU",
    "tensor-core": "compare a Hopper GPU's tensor cores with the emulator's model of them, bit for bit",
    "fences": "read and time what fences cost rung s4",
    "timeline": "record who loads, multiplies, promotes and waits in a rung, and when",
    "explain": "say which production kernel a product gets, and what is expected of it; needs no GPU",
    "tune": "measure which production kernel is the fastest for a product, and keep the answer",
    "doctor": "say what this machine has, what it lacks and how to get it",
}

# Where each command's main() is, below gemm_ladder.
MODULES = {
    "compare": "measure.compare",
    "production": "measure.production_rows",
    "host": "measure.host",
    "interleave": "measure.interleave",
    "cards": "measure.cards",
    "precision": "measure.precision",
    "tensor-core": "measure.tensor_core",
    "fences": "measure.fences",
    "timeline": "timeline.command",
    "explain": "production.explain",
    "tune": "production.tuner",
    "doctor": "build.doctor",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the command and its arguments; the process's own if None.

    Returns:
        The exit status: 0; 1 where a rung is wrong or doctor finds the emulator unable to run; 2 where the
        command could not be carried out: the reason is then one sentence on stderr, with the compiler's
        output where there is one.
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

    try:
        return importlib.import_module(f"gemm_ladder.{MODULES[command]}").main(rest)
    except (GemmLadderError, ToolchainError, BuildError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `... | head` has read enough; what is left unprinted has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _refuse(reason: str) -> int:
    print(f"gemm_ladder: {reason}", file=sys.stderr)
    return 2

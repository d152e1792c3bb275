"""Several processes that run the functions of trained_cases.py, measured_cases.py, sharded_cases.py and
parallel_cases.py, each with a rank of torch.distributed.

    python tests/parallel_runs.py FOLDER BACKEND RANKS...

For each number of RANKS so many processes are forked, which spares each the imports. What went wrong in a
case is in FOLDER/RANKS.CASE.RANK; an empty file says that nothing did.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# That all cases of one number of ranks may take. On GPUs kernels are compiled meanwhile.
SECONDS = {"gloo": 150, "nccl": 400}


def run(folder: Path, backend: str, *sizes: int) -> None:
    """Run all cases; raises where a process does not come back."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    command = [sys.executable, __file__, str(folder), backend, *map(str, sizes)]
    subprocess.run(command, env=environment, timeout=SECONDS[backend] * len(sizes), check=True)


def found(folder: Path, size: int, case: str) -> list[str]:
    """What went wrong in a case, by rank."""
    paths = [folder / f"{size}.{case}.{rank}" for rank in range(size)]
    return [path.read_text() if path.exists() else "did not come to its end" for path in paths]


def _work(folder: Path, backend: str, rank: int, size: int) -> None:
    import torch
    import torch.distributed as dist
    import trained_cases

    options: dict[str, Any] = {}
    if backend == "nccl":
        torch.cuda.set_device(rank)
        options["device_id"] = torch.device("cuda", rank)
    store = f"file://{folder}/store{size}"
    options["timeout"] = datetime.timedelta(seconds=SECONDS[backend] / 2)
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=size, **options)
    device = "cuda" if backend == "nccl" else "cpu"
    for name, case in trained_cases.CASES.items():
        try:
            case(device)
        except Exception:  # the others would wait for this one: it ends, which they notice
            (folder / f"{size}.{name}.{rank}").write_text(traceback.format_exc())
            return
        (folder / f"{size}.{name}.{rank}").write_text("")
    dist.barrier()
    dist.destroy_process_group()


def main(arguments: Sequence[str]) -> None:
    import trained_cases  # what is imported before the fork is imported once

    folder, backend = Path(arguments[0]), arguments[1]
    assert trained_cases.CASES
    for size in map(int, arguments[2:]):
        children = []
        for rank in range(size):
            if not (child := os.fork()):
                status = 1
                try:
                    _work(folder, backend, rank, size)
                    status = 0
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1:])

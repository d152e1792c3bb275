"""Kernels for thousands of configurations, several of them in each library: starting the compilers costs more
than compiling one kernel."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from gemm_ladder import build, launch
from gemm_ladder.build import Built
from gemm_ladder.errors import GemmLadderError, one_line
from gemm_ladder.launch import Launcher
from gemm_ladder.production import config as configs
from gemm_ladder.production.config import Config

TOGETHER = 12  # kernels in a library


class Batches:
    """Compiles configurations in their order, on all cores but one, while others are being measured.

    Args:
        wanted: the configurations; each is compiled once.
    """

    def __init__(self, wanted: Iterable[Config]) -> None:
        self._pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1))
        self._at: dict[Config, tuple[Future[Built], int]] = {}
        waiting: dict[str, list[Config]] = {mode: [] for mode in configs.INTERLEAVES}
        for config in dict.fromkeys(wanted):
            batch = waiting[config.interleave]
            batch.append(config)
            if len(batch) == TOGETHER:
                self._submit(batch)
                waiting[config.interleave] = []
        for batch in waiting.values():
            if batch:
                self._submit(batch)

    def _submit(self, batch: list[Config]) -> None:
        future = self._pool.submit(_compiled, batch)
        self._at |= {config: (future, number) for number, config in enumerate(batch)}

    def launcher(self, config: Config) -> Launcher:
        """The function that launches a configuration, once it is compiled.

        Raises:
            GemmLadderError: it could not be compiled.
        """
        future, number = self._at[config]
        name = f"{configs.ENTRY}_{number}" if number else configs.ENTRY
        return launch.launcher(future.result().lib, name)

    def close(self) -> None:
        """Give up what is not compiled yet."""
        self._pool.shutdown(cancel_futures=True)


def _compiled(batch: list[Config]) -> Built:
    text, mode = configs.source(batch), batch[0].interleave
    try:
        return build.compile(text, target="cuda", name="batch", sass_pass=configs.interleaving(mode))
    except GemmLadderError as error:
        raise GemmLadderError(f"{batch[0].name} and {len(batch) - 1} more: {one_line(error)}") from error

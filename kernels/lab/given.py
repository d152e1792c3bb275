"""The source that is judged, and how it is started."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from gemm_ladder import build
from gemm_ladder.arguments import TMA_ALIGNMENT, GemmArgs, align
from gemm_ladder.errors import InputError
from gemm_ladder.lab.cases import Case
from gemm_ladder.lab.sources import source_text

ENTRY = "gemm_ladder_launch"


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """A source that is judged.

    Attributes:
        name: for people.
        source: the path of its file, or its text.
        flags: where its headers are, beside its own folder.
        defines: macros.
    """

    name: str
    source: Path | str
    flags: tuple[str, ...]
    defines: Mapping[str, str | int] | None

    @classmethod
    def of(
        cls, source: str | Path, defines: Mapping[str, str | int] | None, include: Sequence[str | Path]
    ) -> Given:
        text, path = source_text(source)
        if not re.search(rf"\b{ENTRY}\b", text):
            raise InputError(
                f'The source has no {ENTRY}; extern "C" const char* {ENTRY}(const GemmArgs* args), which '
                "starts the kernel, is needed (`python -m gemm_ladder lab new` writes a file that has one). "
                "Any other kernel is tried by `lab run --seeds 20`, or by lab.sweep() and lab.compare()."
            )
        name = path.stem if path else "kernel"
        return cls(name, path or text, tuple(f"-I{Path(one).absolute()}" for one in include), defines)

    def build(self, target: Literal["cuda", "emulator"]) -> build.Built:
        return build.load(
            self.source, target=target, name=self.name, defines=self.defines, extra_flags=self.flags
        )


def arguments(case: Case, pointers: Mapping[str, int], num_sms: int, stream: int | None = None) -> GemmArgs:
    """The launcher's argument.

    Args:
        pointers: the addresses of a, sfa, b, sfb and d; of a, b and d where there are no scales.
    """
    sizes = {"m": case.m, "n": case.n, "k": case.k}
    if "sfa" in pointers:
        sizes["sfa_stride"] = align(case.m, TMA_ALIGNMENT // 4)
    return GemmArgs(**pointers, **sizes, num_sms=num_sms, stream=stream)

"""Draw every figure, and rewrite the tables of README.md and figures/README.md and the rungs' cards, from
data/*.json: python figures/draw.py

Needs matplotlib and nothing else: no GPU, no compiler, no gemm_ladder. The files, each the record of one run:

    data/ladder.json       the rungs beside libraries (python -m gemm_ladder compare)
    data/production.json   the production kernels beside libraries (python -m gemm_ladder production)
    data/everywhere.json   the same at the weights of public models (python -m gemm_ladder everywhere)
    data/training.json     the training kernels beside DeepGEMM's (python -m gemm_ladder training)
    data/host.json         what a call costs the host (python -m gemm_ladder host)
    data/casts.json        the casts to FP8 beside a copy and libraries (python -m gemm_ladder casts)
    data/parallel.json     layers that GPUs share (python -m gemm_ladder parallel)
    data/fp8_training.json a model trained with FP8 linears and BF16 ones (python -m gemm_ladder train)
    data/model.json        FP8 in decoder layers and in a whole model (python -m gemm_ladder model)
    data/interleave.json   rung 8 in each of its modes (python -m gemm_ladder interleave)
    data/cards.json        what each rung is made of, and what limits it (python -m gemm_ladder cards)
    data/timeline.json     who did what, and when (python -m gemm_ladder timeline all --json ...)

rows.py says which fields they have.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main(root: Path = HERE.parent) -> None:
    """Write figures/*.png, hopper.svg, cards/*.md and the tables of the two READMEs under `root`, from the
    data under it. What is made from a file that is not there is left as it is."""
    from . import (
        casts,
        everywhere,
        fp8_training,
        hopper_map,
        host,
        ladder,
        model,
        parallel,
        production,
        readme,
        roofline,
        rung_cards,
        timeline,
    )

    figures = root / "figures"
    data = recorded(figures / "data")
    pictures: dict[str, Any] = {}
    if "ladder" in data:
        pictures |= {"shape": ladder.bars(data["ladder"]), "ladder": ladder.ladder(data["ladder"])}
    if "production" in data:
        pictures["production"] = production.picture(data["production"])
        pictures["roofline"] = roofline.roofline(data["production"], data.get("ladder"))
    if "everywhere" in data:
        pictures["everywhere"] = everywhere.picture(data["everywhere"])
    if "host" in data:
        pictures["host"] = host.picture(data["host"])
    if "casts" in data:
        pictures["casts"] = casts.picture(data["casts"])
    if "parallel" in data:
        pictures["parallel"] = parallel.picture(data["parallel"])
    if "fp8_training" in data:
        pictures["fp8_training"] = fp8_training.picture(data["fp8_training"])
    if "model" in data:
        pictures |= {"layers": model.picture(data["model"]), "minilm": model.lines(data["model"])}
    for name, picture in pictures.items():
        picture.savefig(figures / f"{name}.png", dpi=130, metadata={"Software": None})
    timeline.draw(root)
    (figures / "hopper.svg").write_text(hopper_map.svg(), encoding="utf-8")
    if "cards" in data:
        (figures / "cards").mkdir(exist_ok=True)
        for name, text in rung_cards.cards(data["cards"]).items():
            (figures / "cards" / f"{name}.md").write_text(text, encoding="utf-8")
    for path, renewed in (
        (root / "README.md", readme.readme),
        (figures / "README.md", readme.figures_readme),
    ):
        path.write_text(renewed(path.read_text(encoding="utf-8"), data), encoding="utf-8")


def recorded(folder: Path) -> dict[str, Any]:
    """The files in `folder` that tables and pictures are made of, as far as they are there, by name without
    .json."""
    from . import casts, everywhere, fp8_training, host, measured, model, parallel, rung_cards

    loaders: dict[str, Callable[[Path], Any]] = {
        **dict.fromkeys(("ladder", "production", "training", "interleave"), measured.load),
        "everywhere": everywhere.load,
        "host": host.load,
        "casts": casts.load,
        "parallel": parallel.load,
        "fp8_training": fp8_training.load,
        "model": model.load,
        "cards": rung_cards.load,
    }
    paths = {name: folder / f"{name}.json" for name in loaders}
    return {name: loaders[name](path) for name, path in paths.items() if path.exists()}


if __name__ == "__main__":  # a script has no package, and the imports above need one
    sys.path.insert(0, str(HERE.parent))
    importlib.import_module(f"{HERE.name}.draw").main()

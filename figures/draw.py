"""Draw every figure, and rewrite README.md's tables and the rungs' cards, from data/*.json: python
figures/draw.py

Needs matplotlib and nothing else: no GPU, no compiler, no gemm_ladder. The files:

    data/ladder.json       the rungs, and the peers measured in the same run (python -m gemm_ladder compare)
    data/peers.json        the peers as they were measured before there was a rung
    data/production.json   the production kernels and their peers (python -m gemm_ladder production)
    data/host.json         what a call costs the host (python -m gemm_ladder host)
    data/interleave.json   rung 6 in each of its modes (python -m gemm_ladder interleave)
    data/cards.json        what each rung is made of, and what limits it (python -m gemm_ladder cards)
    data/timeline.json     who did what, and when (python -m gemm_ladder timeline all --json ...)

measured.py says what is in those of times, host.py, rung_cards.py and timeline.py what is in the others.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main(root: Path = HERE.parent) -> None:
    """Draw figures/*.png, write figures/cards/*.md and rewrite README.md, all under `root`, from the data
    under it. What belongs to a file that is not there is left as it is."""
    from . import host, ladder, measured, production, readme, roofline, rung_cards, timeline

    figures = root / "figures"
    data, files = recorded(figures / "data"), measured.recorded(figures / "data")
    pictures = {"ladder": ladder.ladder(files)}
    if "production" in data:
        pictures["production"] = production.picture(data["production"], data.get("peers"))
        pictures["roofline"] = roofline.roofline(data["production"], files)
    if "host" in data:
        pictures["host"] = host.picture(data["host"], data.get("peers"))
    for name, picture in pictures.items():
        picture.savefig(figures / f"{name}.png", dpi=130, metadata={"Software": None})
    timeline.draw(root)
    if "cards" in data:
        (figures / "cards").mkdir(exist_ok=True)
        for name, text in rung_cards.cards(data["cards"]).items():
            (figures / "cards" / f"{name}.md").write_text(text, encoding="utf-8")
    path = root / "README.md"
    path.write_text(readme.readme(path.read_text(encoding="utf-8"), files, data), encoding="utf-8")


def recorded(folder: Path) -> dict[str, Any]:
    """The data files that README.md's tables are made of, as far as they are there, by name without .json."""
    from . import host, measured, rung_cards

    loaders = dict.fromkeys(("peers", "production", "interleave"), measured.load)
    loaders |= {"host": host.load, "cards": rung_cards.load}
    paths = {name: folder / f"{name}.json" for name in loaders}
    return {name: loaders[name](path) for name, path in paths.items() if path.exists()}


if __name__ == "__main__":  # a script is in no package: what it imports beside itself is in this one
    sys.path.insert(0, str(HERE.parent))
    importlib.import_module(f"{HERE.name}.draw").main()

"""Draw every figure, and rewrite README.md's tables and the rungs' cards, from data/*.json: python
figures/draw.py

Needs matplotlib and nothing else: no GPU, no compiler, no gemm_ladder. The files:

    data/ladder.json       the rungs, and the peers measured in the same run (python -m gemm_ladder compare)
    data/peers.json        the peers as they were measured before there was a rung
    data/interleave.json   rung 6 in each of its modes (python -m gemm_ladder interleave)
    data/cards.json        what each rung is made of, and what limits it (python -m gemm_ladder cards)
    data/timeline.json     who did what, and when (python -m gemm_ladder timeline all --json ...)

measured.py says what is in the first three, rung_cards.py and timeline.py what is in the others.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(root: Path = HERE.parent) -> None:
    """Draw figures/*.png, write figures/cards/*.md and rewrite README.md, all under `root`, from the data
    under it. What belongs to a file that is not there is left as it is."""
    from . import ladder, measured, readme, rung_cards, timeline

    figures, data = root / "figures", root / "figures" / "data"
    files = measured.recorded(data)
    interleave = measured.load(data / "interleave.json") if (data / "interleave.json").exists() else None
    cards = rung_cards.load(data / "cards.json") if (data / "cards.json").exists() else None
    ladder.ladder(files).savefig(figures / "ladder.png", dpi=130, metadata={"Software": None})
    timeline.draw(root)
    if cards:
        (figures / "cards").mkdir(exist_ok=True)
        for name, text in rung_cards.cards(cards).items():
            (figures / "cards" / f"{name}.md").write_text(text, encoding="utf-8")
    path = root / "README.md"
    text = readme.readme(path.read_text(encoding="utf-8"), files, interleave, cards)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":  # a script is in no package: what it imports beside itself is in this one
    sys.path.insert(0, str(HERE.parent))
    importlib.import_module(f"{HERE.name}.draw").main()

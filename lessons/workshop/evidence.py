"""What the lessons show of each rung beside its own subject: predicted against measured, and one thread, how
busy the tensor cores are. All numbers are the model's (workshop/model.py) or in figures/data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gemm_ladder.figures import measured, rung_cards, tables
from gemm_ladder.figures.rows import CardsFile
from matplotlib import pyplot as plt
from workshop import drawing_results, exercises, model, printed
from workshop.drawing import BLUE, INK, MUTED, ORANGE, _pale

SHOWN = (4096, 7168, 16384)  # the shape of the lessons' bars
GUESSED = (4096, 7168, 2048)  # the one that guesses are about: README's table answers those about SHOWN
SIZES = (SHOWN, GUESSED, (4096, 32768, 512), (4096, 2112, 7168), (64, 7168, 16384))


def predict(rung: str, size: tuple[int, int, int] = SHOWN, of: model.Prediction | None = None) -> None:
    """Print what the model expects at one shape, term by term; `of`: instead of the model's own."""
    found = of or model.RUNGS[rung](*size)
    longest = max(map(len, found.terms))
    print(f"{rung} at {drawing_results.name(size)}, microseconds:")
    for term, us in sorted(found.terms.items(), key=lambda one: -one[1]):
        print(f"    {term:{longest}} {us:10.1f}")
    print(f"predicted{' ' * (longest - 5)} {found.us:10.1f}")


def compare(rung: str, guess: str = "", sizes: Sequence[tuple[int, int, int]] = SIZES, of: str = "") -> None:
    """Print the model's microseconds beside the measured ones, L2 dirty, and how far off they are.

    `guess` names the reader's guess about GUESSED, printed below; `of`: another function of the model than
    the rung's own.
    """
    us = drawing_results.times(rung)
    if not us:
        print(f"{rung} has not been measured on a GPU yet.")
        return
    cells = [["m x n x k", "predicted us", "measured us", "predicted / measured"]]
    for size in (one for one in sizes if one in us):
        expected = (getattr(model, of) if of else model.RUNGS[rung])(*size).us
        ratio = f"{expected / us[size]:.2f}"
        cells.append([drawing_results.name(size), f"{expected:.1f}", f"{us[size]:.1f}", ratio])
    print(tables.plain(cells))
    gpu = measured.load(measured.DATA / "ladder.json")["meta"]["gpu"]
    print(f"Measured: {gpu}, L2 dirty.")
    if guess:
        exercises.found(guess, us[GUESSED], f"us at {drawing_results.name(GUESSED)}")


def faster(guess: str, rung: str, than: str) -> None:
    """Print how many times as fast a rung is as another at GUESSED, beside the reader's guess."""
    mine, other = (drawing_results.times(name)[GUESSED] for name in (rung, than))
    exercises.found(guess, other / mine, f"times as fast as {than} at {drawing_results.name(GUESSED)}")


def a_wave(rung: str, sizes: Sequence[tuple[int, int, int]], of: str = "") -> None:
    """Print how much longer than predicted a rung takes for each wave of its tiles of 64 x 128, two an SM;
    `of`: another function of the model than the rung's own."""
    us = drawing_results.times(rung)
    for size in (one for one in sizes if one in us):
        expected = (getattr(model, of) if of else model.RUNGS[rung])(*size).us
        waves = model.waves(*size[:2], 64, 128, 2 * model.SMS)
        print(
            f"{drawing_results.name(size)}: predicted {expected:.0f} us, {expected / us[size]:.2f} of the "
            f"measured {us[size]:.0f}; {waves} waves, {(us[size] - expected) / waves:+.1f} us for each"
        )


def thread(rung: str) -> None:
    """How busy the tensor cores are in each rung up to this one: the percentage of ncu's tensor pipe."""
    cards = rung_cards.load(measured.DATA / "cards.json")
    busy = {row["rung"]: row["ncu"] for row in cards["rows"] if row["rung"] in model.RUNGS}
    shown = [*busy][: [*busy].index(rung) + 1]
    _, axes = plt.subplots(figsize=(8.5, 0.75 + 0.27 * len(shown)))
    for y, name in enumerate(shown):
        share = busy[name]["tensor"] if busy[name] else None
        if share is not None:
            colour = ORANGE if name == rung else _pale(BLUE, 0.8)
            axes.barh(y, share, height=0.7, color=colour)
        words = "not profiled" if share is None else f"{share:.0f}%"
        axes.annotate(words, (share or 0, y), (4, 0), textcoords="offset points", va="center", size=8,
                      color=INK if share is not None else MUTED)  # fmt: skip
    axes.set_yticks(range(len(shown)), shown, size=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    axes.set_title(f"Tensor cores busy, {_where(cards)}")
    plt.show()
    printed.show(in_words(rung, busy))


def in_words(rung: str, busy: Mapping[str, Mapping[str, float] | None]) -> str:
    """The thread's last step in a sentence, and the unit that is fuller than the tensor cores, if one is."""
    mine, names = busy[rung], [*busy]
    if mine is None:
        return f"{rung} has not been profiled: python -m gemm_ladder cards, on a machine with ncu."
    below = busy[names[names.index(rung) - 1]] if names.index(rung) else None
    before = f", after {below['tensor']:.0f}%" if below else ""
    units = {unit: mine[unit] for unit in rung_cards.UNITS if mine.get(unit) is not None}
    fullest = max(units, key=units.__getitem__)
    sentence = f"{rung}: the tensor cores do {mine['tensor']:.0f}% of what they could{before}."
    return f"{sentence} The fullest unit: {rung_cards.UNITS[fullest]}, {units[fullest]:.0f}% of the peak."


def _where(cards: CardsFile) -> str:
    ncu = cards["meta"].get("ncu")
    return f"by ncu: {ncu['shape'].replace('x', ' x ')}, {ncu['gpu']}" if ncu else "by ncu"

"""Which configuration a product gets, without a GPU: the one that is expected to be the fastest.

    config = choose("dense", 4096, 7168, 2048)

A weight gets at most MOST_KERNELS kernels, so that a process compiles few of them; which ones, `plan` decides
when the weight is first asked about: those that are expected to serve all numbers of rows best. A weight of
many groups has another kernel for few rows (FEW_ROWS). A call gets the best of these for its own number of
rows. The choice is a function of its arguments alone. It is one for all states of L2, by the mean of the
logarithms of the expected times: choices for each state would be 1 % faster (NOTES.md).
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from gemm_ladder.arguments import (
    H100_SMS,
    K_MULTIPLE,
    KINDS,
    M_ALIGNMENT,
    MAX_SIZE,
    N_MULTIPLE,
    Kind,
    ceil_div,
)
from gemm_ladder.errors import InputError
from gemm_ladder.production import prediction
from gemm_ladder.production.candidates import Candidates, Floats, candidates
from gemm_ladder.production.config import SPARSE_KINDS, Config

MOST_KERNELS = 12  # for a weight

# The numbers of rows for which a configuration is chosen; a call gets that of the next larger one. Up to 256
# these are multiples of 8, the least by which the height of A's boxes changes; above, a step is at most an
# eighth of them; a larger call gets what the last one gets. What a step chooses is what suits its middle.
STEPS: tuple[int, ...] = (
    *range(8, 257, 8),
    *range(288, 1025, 32),
    *range(1088, 4097, 64),
    *range(4224, 8193, 128),
    *range(8448, 16385, 256),
)
MIDDLES = tuple(
    (below + 1 + step) / 2 if step > 256 else step for below, step in zip((0, *STEPS), STEPS, strict=False)
)
# For these the kernels of a weight are selected: from 129 to 1024 rows for every step, where most depends on
# having the right one, as the number of waves is small, and up to 4096 for every other step.
SELECTED_FOR: tuple[float, ...] = (
    *(8, 16, 24, 32, 48, 64, 80, 96, 112, 128),
    *(rows for rows in MIDDLES if 128 < rows <= 1024),
    *tuple(rows for rows in MIDDLES if 1024 < rows <= 4096)[::2],
    *(5120, 6144, 8192, 16384),
)
WORTHWHILE = 0.0002  # what another kernel has to gain on average, as a share of the time
NEAR = 0.1  # a kernel is considered if it is expected to be at most this much slower than the best, somewhere
MISSING = 2.0  # how much slower a number of rows is taken to be that no kernel suits
BADLY = 20.0  # how much more a large loss at one number of rows counts than a small one at many
MOST_EXCHANGES = 40
# Where groups are expected to have so few rows, and there are so many of them, some may well have none: then
# the scheduler passes over these several at a time (Config.sparse; NOTES.md, 2026-11-30).
FEW_ROWS, MANY_GROUPS = STEPS[0], 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """The kernels of a weight.

    Attributes:
        configs: the configurations, at most MOST_KERNELS unless more were measured to be the fastest; for
            many groups another one, which is `sparse`.
        chosen: for each of STEPS, the index of its configuration in `configs`.
    """

    configs: tuple[Config, ...]
    chosen: tuple[int, ...]

    def at(self, rows: int) -> Config:
        """The configuration for a number of rows, of a group if there are groups."""
        return self.configs[self.chosen[_index(rows)]]

    def from_rows(self, rows: int) -> list[Config]:
        """All configurations: those for a number of rows and for ever more rows, then those for fewer."""
        here = _index(rows)
        return [self.configs[one] for one in dict.fromkeys(self.chosen[here:] + self.chosen[:here])]


def choose(
    kind: Kind,
    m: int,
    n: int,
    k: int,
    groups: int = 1,
    num_sms: int = H100_SMS,
    expected_m: int | None = None,
    gpu: str = "",
) -> Config:
    """The configuration that is expected to be the fastest.

    Args:
        kind, n, k, groups: the layout, the sizes of B, and how many groups B has.
        m: rows of A in all; in the masked layout max_m, those that each group has room for.
        num_sms: how many SMs there are to use.
        expected_m: in the masked and the psum layout, about how many rows of a group count; None: all of
            them, in the psum layout an equal share of m.
        gpu: the GPU's name; what was learned about an H100 is used for one that was never measured.

    Raises:
        InputError: no kernel multiplies these sizes.
    """
    check(kind, m, n, k, groups, num_sms)
    return plan(kind, n, k, groups, num_sms, gpu).at(rows_to_expect(kind, m, groups, expected_m))


def check(kind: Kind, m: int, n: int, k: int, groups: int, num_sms: int) -> None:
    """Raise InputError if no kernel multiplies these sizes."""
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}; one of {', '.join(KINDS)} is needed")
    for name, value in {"m": m, "n": n, "k": k, "groups": groups, "num_sms": num_sms}.items():
        if value < 1:
            raise InputError(f"{name} is {value}; 1 or more is needed")
    for name, value, multiple in (("n", n, N_MULTIPLE), ("k", k, K_MULTIPLE)):
        if value % multiple:
            raise InputError(f"{name} is {value}; a multiple of {multiple} is needed")


def rows_to_expect(kind: Kind, m: int, groups: int, expected_m: int | None) -> int:
    """The number of rows, of a group if there are groups, by which a configuration is chosen: the next larger
    one of STEPS, or the last."""
    if _divides(kind, expected_m):
        m = ceil_div(m, groups)
    elif kind != "dense" and expected_m is not None:
        m = min(m, max(1, expected_m))
    return STEPS[_index(m)]


def same_rows(kind: Kind, m: int, groups: int, expected_m: int | None) -> tuple[int, int]:
    """The least and the largest m for which `rows_to_expect` is known to be what it is for this one. In the
    masked layout, and where a psum layout has an expected m, it is this one alone: callers seldom change it.
    """
    if kind != "dense" and not _divides(kind, expected_m):
        return m, m
    groups = 1 if kind == "dense" else groups
    index = _index(ceil_div(m, groups))
    first = STEPS[index - 1] * groups + 1 if index else 1
    return first, STEPS[index] * groups if index < len(STEPS) - 1 else MAX_SIZE


def _divides(kind: Kind, expected_m: int | None) -> bool:
    """Whether a group is expected to have an equal share of all rows."""
    return kind == "contiguous" or (kind == "psum" and not expected_m)


def _index(rows: int) -> int:
    return min(bisect.bisect_left(STEPS, rows), len(STEPS) - 1)


def steps_up_to(kind: Kind, max_m: int, groups: int) -> tuple[int, ...]:
    """Those of STEPS that calls with m from 1 to `max_m` are rounded to."""
    return STEPS[: _index(ceil_div(max_m, groups) if kind == "contiguous" else max_m) + 1]


@functools.lru_cache(maxsize=1024)
def plan(
    kind: Kind,
    n: int,
    k: int,
    groups: int,
    num_sms: int,
    gpu: str = "",
    measured: tuple[tuple[int, Config], ...] = (),
    alignment: int = M_ALIGNMENT,
) -> Plan:
    """The kernels of a weight, and which number of rows gets which.

    Args:
        kind, n, k, groups, num_sms, gpu: as for `choose`.
        measured: numbers of rows, each one of STEPS, and the configurations that were measured to be the
            fastest for them. These are among the kernels, for other numbers of rows too. Whether they are
            sparse does not count, as all groups have rows in such a measurement.
        alignment: at multiples of how many rows the groups of a contiguous or psum layout begin.
    """
    measured = tuple((rows, dataclasses.replace(config, sparse=False)) for rows, config in measured)
    known = candidates(kind, k, alignment)
    times = expected(known, kind, SELECTED_FOR, n, k, groups, num_sms, gpu)
    fixed = tuple(dict.fromkeys(config for _, config in measured))
    start = expected(Candidates(fixed), kind, SELECTED_FOR, n, k, groups, num_sms, gpu) if fixed else None
    found = _select(times, start)
    configs = fixed + tuple(known.at(one, n, k) for one in found)
    among = Candidates(configs)
    chosen = expected(among, kind, MIDDLES, n, k, groups, num_sms, gpu).argmin(axis=0)
    for rows, config in measured:
        chosen[STEPS.index(rows)] = configs.index(config)
    if kind in SPARSE_KINDS and groups >= MANY_GROUPS:
        first = STEPS.index(FEW_ROWS)
        configs += (dataclasses.replace(configs[chosen[first]], sparse=True),)
        chosen[first] = len(configs) - 1
    used = sorted(set(chosen.tolist()))
    return Plan(tuple(configs[one] for one in used), tuple(used.index(one) for one in chosen.tolist()))


def _select(times: Floats, start: Floats | None) -> list[int]:
    """The indices of the configurations that together are the fastest. They are selected one after another;
    then single ones are exchanged as long as that helps.

    Args:
        times: [configurations, rows], logarithms of the expected times.
        start: the same of configurations that are there anyway.
    """
    least = times.min(axis=0) if start is None else np.minimum(times.min(axis=0), start.min(axis=0))
    near = np.flatnonzero((times < least + NEAR).any(axis=1))
    slower = np.minimum(times[near] - least, MISSING)
    given = np.full_like(least, MISSING) if start is None else np.minimum(start.min(axis=0) - least, MISSING)

    def costs(by: Floats) -> Floats:
        found: Floats = (by + BADLY * by * by).sum(axis=-1)
        return found

    found: list[int] = []
    best, now = given, float(costs(given))
    for _ in range(MOST_KERNELS - (0 if start is None else len(start))):
        after = costs(np.minimum(best, slower))
        one = int(after.argmin())
        if now - after[one] <= WORTHWHILE * len(least):
            break
        found.append(one)
        best, now = np.minimum(best, slower[one]), float(after[one])
    for _ in range(MOST_EXCHANGES):
        exchanges = []
        for place in range(len(found)):
            rest = np.minimum.reduce([given, *(slower[one] for one in found if one != found[place])])
            after = costs(np.minimum(rest, slower))
            exchanges.append((float(after.min()), place, int(after.argmin())))
        if not exchanges or min(exchanges)[0] >= now - 1e-9:
            break
        now, place, one = min(exchanges)
        found[place] = one
    return [int(near[one]) for one in found]


def expected(
    among: Candidates,
    kind: Kind,
    rows: Sequence[float],
    n: int,
    k: int,
    groups: int,
    num_sms: int,
    gpu: str = "",
) -> Floats:
    """The logarithm of the expected time, its mean over the states of L2: [configurations, rows].

    It is infinite where a configuration does not suit.
    """
    each = np.array(rows, dtype=np.float64)
    suits = among.suiting(kind, each, n, k, num_sms, groups)
    which, where = np.nonzero(suits)
    columns = {name: values[which] for name, values in among.columns.items()}
    found = prediction.work(columns, each[where], kind, n, k, groups, num_sms)
    times = np.full(suits.shape, np.inf)
    times[which, where] = prediction.log_times(found, gpu).mean(axis=1)
    return times


def ranked(
    kind: Kind, m: int, n: int, k: int, groups: int = 1, num_sms: int = H100_SMS, gpu: str = ""
) -> list[Config]:
    """The candidates for a product: first the one that is chosen, then the others by their expected times.

    Arguments and errors: as `choose`; in the masked layout, m is how many rows of a group count.
    """
    chosen = choose(kind, m, n, k, groups, num_sms, gpu=gpu)
    known = candidates(kind, k)
    times = expected(known, kind, (rows_to_expect(kind, m, groups, None),), n, k, groups, num_sms, gpu)[:, 0]
    order = [int(one) for one in times.argsort(kind="stable") if np.isfinite(times[one])]
    found = [known.at(one, n, k) for one in order]
    return [chosen, *(one for one in found if one != chosen)]

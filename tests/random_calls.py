"""What the tests that call with random operands have in common."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, settings

Test = Callable[..., None]


def examples(count: int) -> Callable[[Test], Test]:
    """Hypothesis's settings: so many examples, the same in every run."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

"""How hard the property tests look: briefly and the same each time, or for as long as asked."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

#: Set it to look at other examples in each run, and at that many.
VARIABLE = "PPTP_NAT_FUZZ_EXAMPLES"


def effort(examples: int, *, steps: int | None = None) -> settings:
    """Return the settings for a property that is worth *examples* of them in ``make test``."""
    asked = int(os.environ.get(VARIABLE, "0"))
    chosen = settings(
        max_examples=asked or examples,
        derandomize=not asked,
        deadline=None,  # no timing decides a test
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    return chosen if steps is None else settings(chosen, stateful_step_count=steps)

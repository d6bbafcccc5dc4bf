"""Keys of fine-tuning that are groups of their own."""

from __future__ import annotations

import dataclasses

from clip_jax.config.keys import BELOW_ONE, Group, key


@dataclasses.dataclass(frozen=True)
class Ema(Group):
    """The exponential moving average of the parameters, evaluated and saved beside them."""

    decay: float = key(
        0.0,
        "share of the average that a step keeps, such as 0.999; 0: no average",
        at_least=0,
        at_most=BELOW_ONE,
    )
    start: int = key(
        0, "updates before the average begins; until then it equals the parameters", at_least=0
    )

"""Which checkpoints of a run are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from orbax.checkpoint.checkpoint_managers import preservation_policy


@dataclasses.dataclass
class Preserve(preservation_policy.PreservationPolicy):
    """The policy that keeps the newest checkpoints, the best one, and some forever.

    Attributes:
      keep: how many of the newest are kept; 0: all.
      keep_every: checkpoints at multiples of this step are kept forever; 0: none.
      best: the step of the best checkpoint; None for none. The run sets it.
    """

    keep: int
    keep_every: int = 0
    best: int | None = None

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: preservation_policy.PreservationContext
    ) -> Sequence[bool]:
        """Returns for each checkpoint whether it is kept, given all in the order of their steps."""
        steps = [info.step for info in checkpoints]
        newest = set(steps[-self.keep :])  # all of them for 0
        return [
            step in newest
            or step == self.best
            or bool(self.keep_every and step % self.keep_every == 0)
            for step in steps
        ]

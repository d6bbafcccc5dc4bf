"""What a training step will take on a TPU slice: asked of the TPU's compiler, without a TPU.

    clip_jax.plan.lower(config, "v5e:16x16").compile().memory_analysis()
    clip_jax.plan.estimate(config, "v5e:16x16").hbm_bytes

Nothing heavy is imported until it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax
    from ml_collections import ConfigDict

    from clip_jax.plan.cost import Estimate

__all__ = ["estimate", "lower"]


def lower(config: ConfigDict, topology: str) -> jax.stages.Lowered:
    """The whole training step of a config for a topology, traced: nothing is allocated.

    Args:
      config: as `--config` gives it.
      topology: such as `v5e:16x16`, `v5p:4x4x4` (chips), or `cpu:8` (devices of this machine).

    Raises:
      UserError: the config is wrong for so many devices, no such topology, libtpu is missing.
    """
    from clip_jax.plan.cost import recipe_of

    return recipe_of(config, topology)[0].lower()


def estimate(config: ConfigDict, topology: str, dump: str | None = None) -> Estimate:
    """Compiles the step of a config for a topology and reads off what it takes.

    Args:
      config: as of `lower`.
      topology: as of `lower`.
      dump: a folder that keeps what the compiler wrote of the program; None: nothing is kept.

    Raises:
      UserError: as of `lower`, or the folder cannot be written.
    """
    from clip_jax.plan.cost import estimated

    return estimated(config, topology, dump)

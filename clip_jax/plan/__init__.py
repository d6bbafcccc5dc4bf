"""Plans: what a training step needs on a TPU slice, as the TPU compiler tells without a TPU.

    clip_jax.plan.lower(config, "v5e:16x16").compile().memory_analysis()
    clip_jax.plan.estimate(config, "v5e:16x16").hbm_bytes

Importing this package imports no other one; the functions import JAX when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax
    from ml_collections import ConfigDict

    from clip_jax.plan.result import Estimate

__all__ = ["estimate", "lower"]


def lower(config: ConfigDict, topology: str) -> jax.stages.Lowered:
    """Traces the training step of a config for a topology; allocates nothing.

    Args:
      config: the config, as a config file returns it.
      topology: such as `v5e:16x16`, `v5p:4x4x4` (chips), or `cpu:8` (devices of this machine).

    Raises:
      UserError: the config is wrong or does not fit the number of devices, the topology is unknown,
        or libtpu is not installed.
    """
    from clip_jax.plan import cost

    return cost.lower(*cost.make_recipe(config, topology))


def estimate(config: ConfigDict, topology: str, dump: str | None = None) -> Estimate:
    """Compiles the training step of a config for a topology, and estimates what it needs.

    Args:
      config: as for `lower`.
      topology: as for `lower`.
      dump: a folder that keeps the output of the compiler; None: nothing is kept.

    Raises:
      UserError: as for `lower`, or the folder cannot be written.
    """
    from clip_jax.plan.cost import estimate_step

    return estimate_step(config, topology, dump)

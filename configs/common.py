"""The defaults: CLIP's own hyperparameters (paper, table 18). A config says what differs.

Not a run by itself: use another file of this folder. docs/config.md describes every key.
"""

from ml_collections import ConfigDict

from clip_jax.config.schema import defaults
from clip_jax.models import architectures


def get_config(model: str = "ViT-B/32") -> ConfigDict:
    return ConfigDict(defaults(architectures.architecture(model)))

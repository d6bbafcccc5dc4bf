"""Text encoders of transformers, by their names on the Hugging Face Hub."""

from __future__ import annotations

from clip_jax.models.encoder_configs import ProjectedEncoder
from clip_jax.models.model_config import RobertaConfig

# As published: their projections are those of whoever uses them.
TOWERS: dict[str, ProjectedEncoder] = {
    "roberta-base": RobertaConfig(),
    "xlm-roberta-base": RobertaConfig(vocab_size=250_002),
    "xlm-roberta-large": RobertaConfig(vocab_size=250_002, width=1024, layers=24, heads=16),
}

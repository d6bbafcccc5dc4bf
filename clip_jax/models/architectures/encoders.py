"""Text encoders of transformers, by their names on the Hugging Face Hub."""

from __future__ import annotations

from clip_jax.models.encoder_configs import ProjectedEncoder
from clip_jax.models.model_config import M2MConfig, RobertaConfig, T5Config

# As published: their projections are those of whoever uses them.
TOWERS: dict[str, ProjectedEncoder] = {
    "roberta-base": RobertaConfig(),
    "xlm-roberta-base": RobertaConfig(vocab_size=250_002),
    "xlm-roberta-large": RobertaConfig(vocab_size=250_002, width=1024, layers=24, heads=16),
    "google/mt5-base": T5Config(),
    "google/mt5-xl": T5Config(width=2048, layers=24, heads=32, mlp_ratio=2.5),
    "facebook/nllb-200-distilled-600M": M2MConfig(),
    "facebook/nllb-200-distilled-1.3B": M2MConfig(layers=24, mlp_ratio=8.0),
}

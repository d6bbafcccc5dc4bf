"""What our parameters are called in the files of others, and how their arrays lie.

OpenAI and open_clip share their names. Everything is one table of `Leaf`s for a model and a
library, read in both directions.
"""

from __future__ import annotations

from typing import Literal

from clip_jax.models.model_config import CLIPConfig
from clip_jax.weights.mappings.hugging_face import hugging_face
from clip_jax.weights.mappings.leaf import Leaf
from clip_jax.weights.mappings.open_clip import open_clip

Library = Literal["openai", "open_clip", "hugging_face"]

LIBRARIES: dict[str, str] = {
    "openai": "OpenAI's CLIP: a state dict in a .pt file",
    "open_clip": "open_clip: open_clip_model.safetensors or .bin, and open_clip_config.json",
    "hugging_face": "transformers: a folder of model.safetensors and config.json",
}

OPENAIS_OWN = "input_resolution"  # in the files that OpenAI published; nobody else writes it
# What files hold besides parameters: sizes, and tables that follow from them.
IGNORED = (
    OPENAIS_OWN,
    "context_length",
    "vocab_size",
    "attn_mask",
    "text.attn_mask",
    "text_model.embeddings.position_ids",
    "text_model.embeddings.token_type_ids",
    "vision_model.embeddings.position_ids",
)


def leaves(config: CLIPConfig, library: Library) -> list[Leaf]:
    """The table for a model in a library's files.

    Raises:
      UserError: the library has no such model.
    """
    tables = hugging_face(config) if library == "hugging_face" else open_clip(config, library)
    found = list(tables)
    assert len({leaf.path for leaf in found}) == len(found)
    return found

"""The parameter names of other libraries: one mapping a library, by name.

Every mapping is a table of `Leaf`s for a model. It is read in both directions.
"""

from __future__ import annotations

from clip_jax.models.model_config import CLIPConfig
from clip_jax.registry import Registry
from clip_jax.weights.mappings.leaf import Leaf
from clip_jax.weights.mappings.protocol import WeightsMapping

Library = str  # a name of `MAPPINGS`, or the dotted path of a user's `WeightsMapping`

MAPPINGS: Registry[type[WeightsMapping]] = Registry(
    "library",
    {
        "openai": "clip_jax.weights.mappings.openai:OpenAI",
        "open_clip": "clip_jax.weights.mappings.open_clip:OpenClip",
        "hugging_face": "clip_jax.weights.mappings.hugging_face:HuggingFace",
    },
)


def mapping_of(library: Library) -> WeightsMapping:
    """The mapping of a library.

    Raises:
      UserError: no library has this name.
    """
    return MAPPINGS.get(library)()


LIBRARIES: dict[str, str] = {name: mapping_of(name).description for name in MAPPINGS.names}

OPENAIS_OWN = "input_resolution"  # in the files that OpenAI published; nobody else writes it
# Tensors of files that are no parameters: sizes, and tables that follow from them.
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
    table = list(mapping_of(library).leaves(config))
    assert len({leaf.path for leaf in table}) == len(table)
    return table

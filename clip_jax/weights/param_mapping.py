"""The registry of mappings between our parameter names and those of other libraries.

There is one mapping for each library: a table of `Leaf`s for each model, which is read in both
directions. A mapping is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from clip_jax.errors import UserError, only_user_errors
from clip_jax.models.model_config import CLIPConfig
from clip_jax.registry import Registry, is_users
from clip_jax.weights.mappings.encoders import EncoderMapping
from clip_jax.weights.mappings.leaf import Leaf
from clip_jax.weights.mappings.protocol import WeightsMapping
from clip_jax.weights.mappings.timm.tower import TimmTower
from clip_jax.weights.mappings.tower import TowerMapping

Library = str  # a name of `MAPPINGS`, or the dotted path of a user's `WeightsMapping`

# The order in which they are asked whether they recognize tensors. OpenAI's names are open_clip's,
# too: open_clip comes first, since its folders have a config.
MAPPINGS: Registry[type[WeightsMapping]] = Registry(
    "library",
    {
        "hugging_face": "clip_jax.weights.mappings.hugging_face:HuggingFace",
        "open_clip": "clip_jax.weights.mappings.open_clip:OpenClip",
        "openai": "clip_jax.weights.mappings.openai:OpenAI",
    },
)
# Of models that are one tower, in the order in which they are asked.
TOWER_MAPPINGS: Registry[type[TowerMapping]] = Registry(
    "library of one tower",
    {
        "bert": "clip_jax.weights.mappings.bert:Bert",
        "t5": "clip_jax.weights.mappings.t5:T5",
        "m2m": "clip_jax.weights.mappings.m2m:M2M",
        "efficientnet_lite": "clip_jax.weights.mappings.efficientnet_lite:EfficientNetLite",
        "timm_eva": "clip_jax.weights.mappings.timm.eva:TimmEva",
        "timm_fastvit": "clip_jax.weights.mappings.timm.fastvit:TimmFastViT",
        "timm_mci_vit": "clip_jax.weights.mappings.timm.mci_vit:TimmMCiViT",
        "timm_relpos_vit": "clip_jax.weights.mappings.timm.relpos_vit:TimmRelPosViT",
        "timm_vit": "clip_jax.weights.mappings.timm.vit:TimmViT",
        "timm_convnext": "clip_jax.weights.mappings.timm.convnext:TimmConvNeXt",
        "timm_vitamin": "clip_jax.weights.mappings.timm.vitamin:TimmViTamin",
        "timm_swin": "clip_jax.weights.mappings.timm.swin:TimmSwin",
    },
)


def mapping_of(library: Library, key: str = "") -> WeightsMapping:
    """Returns the mapping of a library.

    Args:
      library: a name of `MAPPINGS`, or a dotted path, which must come from the user.
      key: the flag or the argument that holds the name, for messages.

    Raises:
      UserError: no library has this name, the user's class cannot be imported, or it is no
        `WeightsMapping`.
    """
    mapping = MAPPINGS.get(library, key)
    if WeightsMapping not in getattr(mapping, "__mro__", ()):
        raise UserError(
            f"{key or 'library'}={library} is no mapping of weights: inherit from "
            "clip_jax.weights.mappings.protocol.WeightsMapping"
        )
    members = (*WeightsMapping.__annotations__, *sorted(WeightsMapping.__abstractmethods__))
    missing = [
        member
        for member in members
        if not hasattr(mapping, member) or member in mapping.__abstractmethods__
    ]
    if missing:
        raise UserError(f"{key or 'library'}={library} has no {', '.join(missing)}")
    if not is_users(mapping):
        return mapping()
    where = f"{key or 'library'}={library}"
    with only_user_errors(where):
        return _in_one_line(where, mapping())


def _in_one_line(where: str, mapping: WeightsMapping) -> WeightsMapping:
    """Makes every method of a user's mapping report its failures in one line."""

    def reporting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with only_user_errors(f"{where}: {name}"):
                result = method(*arguments, **options)
                return list(result) if name == "leaves" else result

        return call

    for name in (*WeightsMapping.__abstractmethods__, "describe"):
        setattr(mapping, name, reporting(name, getattr(mapping, name)))
    return mapping


def title_of(library: Library) -> str:
    """Returns a library's name in words, such as "OpenAI's CLIP"."""
    return mapping_of(library).description.partition(":")[0]


OPENAIS_OWN = "input_resolution"  # in the files that OpenAI published; nobody else writes it
# Tensors of files that are no parameters: sizes, and tables that follow from them.
_IGNORED = (
    OPENAIS_OWN,
    "context_length",
    "vocab_size",
    "attn_mask",
    "text.transformer.embeddings.position_ids",
    "text_model.embeddings.position_ids",
    "text_model.embeddings.token_type_ids",
    "vision_model.embeddings.position_ids",
)
_TABLES = (".attn_mask", ".relative_position_index")  # the ends of names of tables


def is_ignored(name: str) -> bool:
    """Returns whether a tensor of a file is no parameter of a model, and may be left out."""
    return name in _IGNORED or name.endswith(_TABLES)


def leaves(
    config: CLIPConfig, library: Library, names: Collection[str] | None = None
) -> list[Leaf]:
    """Returns the table that maps a model's parameters to the tensors of a library's files.

    Args:
      config: the architecture.
      library: the library.
      names: the names of the tensors of a file that is read; None for a file that is written.

    Raises:
      UserError: the library has no such model.
    """
    mapping = mapping_of(library)
    table = list(mapping.leaves(config))
    assert len({leaf.path for leaf in table}) == len(table)
    return table if names is None else mapping.as_in_file(table, names)


def mapping_of_tower(tower: Any) -> TimmTower | EncoderMapping | None:
    """Returns the mapping with timm's or transformers' names of a tower; None if there is none."""
    for name in TOWER_MAPPINGS.names:
        mapping = TOWER_MAPPINGS.get(name)()
        if isinstance(mapping, TimmTower | EncoderMapping) and mapping.fills(tower):
            return mapping
    return None

"""Text encoders of transformers in open_clip's model_cfg: from a name to a tower, and back."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.models.architectures import TOWERS
from clip_jax.models.encoder_configs import ProjectedEncoder
from clip_jax.weights.configs.fields import Fields

# Keys of open_clip's own text towers, which it does not read beside a name of transformers.
UNREAD = (
    *("vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value", "embed_cls"),
    *("no_causal_mask", "pool_type", "proj_bias", "proj_type", "act_kwargs", "norm_kwargs"),
)
_ENCODERS: dict[str, Any] = {
    name: tower for name, tower in TOWERS.items() if isinstance(tower, ProjectedEncoder)
}
# open_clip's poolings: of its configs without one, and `cls_pooler` where an encoder has no pooler
# of its own.
_USUAL_POOLER = {"roberta": "mean_pooler", "t5": "mean_pooler", "m2m": "cls_pooler"}
_POOLERS = {"mean_pooler": "mean", "cls_last_hidden_state_pooler": "first"}


def read_encoder(text: Fields, embed_dim: int) -> ProjectedEncoder:
    """Reads the text tower that `hf_model_name` names.

    Raises:
      UserError: the name is unknown, or its pooling or projection is not supported.
    """
    name = text.text("hf_model_name", "")
    if name not in _ENCODERS:
        near = difflib.get_close_matches(name, _ENCODERS, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"{text.where}: hf_model_name={name!r:.60} is not supported here, only "
            f"{', '.join(_ENCODERS)}{hint}"
        )
    tower = _ENCODERS[name]
    return dataclasses.replace(
        tower,
        context_length=text.integer("context_length", 77),
        pool=_pool(text, tower),
        projection=_projection(text, tower.width == embed_dim),
    )


def _pool(text: Fields, tower: ProjectedEncoder) -> str:
    """Returns the pooling of `hf_pooler_type`; open_clip has a default for each kind if it is null.

    `max_pooler` cannot be meant: it hides the words, not the padding, and torch refuses its mask.
    """
    name = text.text("hf_pooler_type", "mean_pooler")
    if text.values.get("hf_pooler_type", "") is None:
        name = _USUAL_POOLER[tower.kind]
    text.only("hf_pooler_type", *_POOLERS, "cls_pooler")
    return _POOLERS[name] if name in _POOLERS else _first(tower)


def _first(tower: ProjectedEncoder) -> str:
    """Returns the pooling of `cls_pooler`: the encoder's own pooler where it has one."""
    return "tanh" if "tanh" in tower.pools else "first"


def _projection(text: Fields, same_width: bool) -> str:
    text.only("hf_proj_type", "linear", "mlp")
    if text.values.get("hf_proj_type", "") is not None:
        return text.text("hf_proj_type", "mlp")
    if not same_width:
        raise UserError(
            f"{text.where}: hf_proj_type is null, which open_clip cannot build where the encoder's "
            "width is not embed_dim"
        )
    return "none"


def write_encoder(tower: Any, activation: str) -> JsonObject:
    """Returns the `text_cfg` of a text encoder in a model with an activation.

    Raises:
      UserError: open_clip knows no name of such an encoder.
    """
    wanted = _comparable(tower, activation)
    names = [name for name, known in _ENCODERS.items() if _comparable(known, "") == wanted]
    if not names:
        raise UserError(
            "open_clip takes text encoders by their names in transformers, and none of "
            f"{', '.join(_ENCODERS)} is a {tower.summary()} like this one"
        )
    poolers = {pool: pooler for pooler, pool in _POOLERS.items()}
    length = {"context_length": tower.context_length} if tower.context_length != 77 else {}
    return {
        **length,
        "hf_model_name": names[0],
        "hf_model_pretrained": False,  # the weights of the whole model are beside the config
        "hf_tokenizer_name": names[0],
        "hf_pooler_type": poolers.get(tower.pool, "cls_pooler"),
        "hf_proj_type": None if tower.projection == "none" else tower.projection,
    }


def _comparable(tower: Any, activation: str) -> Any:
    """Returns what a tower's name in transformers says of it."""
    values = dataclasses.asdict(tower)
    for key in ("pool", "projection", "context_length"):
        del values[key]
    values["mlp_ratio"] = round(tower.width * tower.mlp_ratio)
    if "activation" in values:
        values["activation"] = tower.activation or activation
    return type(tower), values

"""Reads the config.json of transformers' text encoders: a tower's fields that it states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.weights.configs.fields import Fields
from clip_jax.weights.configs.hugging_face import EVERYWHERE, activation_of, bert_fields


def from_encoder(values: Mapping[str, Any], kind: str, where: str = "config.json") -> JsonObject:
    """Returns the fields of a text tower that the config.json of such an encoder states.

    Args:
      values: the config.
      kind: the `kind` of our tower.
      where: the name of the file in messages.

    Raises:
      UserError: another kind of model, a value of the wrong type, an unknown key, or a feature
        that we do not have.
    """
    fields = Fields(values, where)
    model = fields.text("model_type", "")
    if model not in _READERS:
        raise UserError(
            f"{where}: model_type={model!r:.60} is not supported here, only {', '.join(_READERS)}"
        )
    wanted, read = _READERS[model]
    if kind != wanted:
        raise UserError(
            f"{where}: model_type={model!r} fills no {kind}: set model.text.kind={wanted}"
        )
    facts = read(fields)
    fields.finish({"": EVERYWHERE})
    return facts


def _read_bert(fields: Fields, **defaults: int) -> JsonObject:
    return {**bert_fields(fields, **defaults), "activation": activation_of(fields, "gelu")}


# By transformers' model_type: the kind of our tower, and how its fields are read.
_READERS: dict[str, tuple[str, Callable[[Fields], JsonObject]]] = {
    "bert": ("bert", _read_bert),
    "roberta": ("roberta", partial(_read_bert, vocab_size=50265, pad_id=1)),
    "xlm-roberta": ("roberta", partial(_read_bert, pad_id=1)),
}

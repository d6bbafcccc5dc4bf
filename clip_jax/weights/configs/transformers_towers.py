"""What transformers' configs of towers have in common: sizes, activations, and unread keys."""

from __future__ import annotations

from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject
from clip_jax.weights.configs.fields import Fields

# Theirs → ours; of several keys of a value the first is written.
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


# Keys that `PretrainedConfig` of transformers has written into every group over the years, and keys
# that only training, generation or other heads read.
EVERYWHERE = (
    *("_attn_implementation_autoset", "_commit_hash", "_name_or_path", "add_cross_attention"),
    *("architectures", "attention_dropout", "attention_probs_dropout_prob"),
    *("attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id"),
    *("chunk_size_feed_forward", "classifier_dropout", "cross_attention_hidden_size"),
    *("decoder_start_token_id", "diversity_penalty", "do_sample", "dropout", "dtype"),
    *("early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id"),
    *("exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id"),
    *("forced_eos_token_id", "gradient_checkpointing", "hidden_dropout_prob", "id2label"),
    *("initializer_factor", "initializer_range", "is_decoder", "is_encoder_decoder"),
    *("label2id", "length_penalty", "max_length", "min_length", "model_type"),
    *("no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels"),
    *(
        "num_return_sequences",
        "output_attentions",
        "output_past",
        "output_hidden_states",
        "output_scores",
    ),
    *("pad_token_id", "prefix", "problem_type", "projection_dim", "pruned_heads"),
    *("remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate"),
    *("sep_token_id", "suppress_tokens", "task_specific_params", "temperature"),
    *("tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class"),
    *("top_k", "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p"),
    *("use_bfloat16", "use_cache", "auto_map"),
)


def activation_of(fields: Fields, default: str) -> str:
    """Returns the activation of a tower."""
    name = fields.text("hidden_act", default)
    if name not in _ACTIVATIONS:
        raise UserError(
            f"{fields.where}: hidden_act={name!r:.60} is not supported here, only "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def shape_of(fields: Fields, width: int, layers: int, heads: int, hidden: int) -> JsonObject:
    """Returns the sizes of a tower's blocks; the other arguments are their defaults."""
    width = fields.integer("hidden_size", width)
    return dict(
        width=width,
        layers=fields.integer("num_hidden_layers", layers),
        heads=fields.integer("num_attention_heads", heads),
        mlp_ratio=fields.integer("intermediate_size", hidden) / width,
    )


def activation_name(activation: str) -> str:
    """Returns transformers' name of an activation."""
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)

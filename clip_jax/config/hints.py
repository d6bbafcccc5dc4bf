"""The key that was meant where somebody writes one that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Collection

# Keys of open_clip, big_vision, transformers and others, and the keys that do the same here.
_ELSEWHERE = {
    "accum_freq": "accumulate",
    "adam_beta1": "optimizer.b1",
    "adam_beta2": "optimizer.b2",
    "adam_epsilon": "optimizer.eps",
    "aug_cfg": "data.augment.crop",
    "batch": "batch_size",
    "beta1": "optimizer.b1",
    "beta2": "optimizer.b2",
    "bs": "batch_size",
    "checkpoint_dir": "workdir",
    "csv_caption_key": "data.captions",
    "csv_img_key": "data.image",
    "csv_separator": "data.separator",
    "early_stopping_patience": "early_stop",
    "eval_steps": "evaluate.every",
    "grad_checkpointing": "remat",
    "grad_clip": "optimizer.clip_norm",
    "grad_clip_norm": "optimizer.clip_norm",
    "gradient_accumulation_steps": "accumulate",
    "gradient_checkpointing": "remat",
    "imagenet_val": "evaluate.folder",
    "local_loss": "loss.layout",
    "log_every_n_steps": "log.every",
    "log_every_steps": "log.every",
    "logging_steps": "log.every",
    "logs": "workdir",
    "lr": "optimizer.learning_rate",
    "lr_cooldown_end": "optimizer.final_learning_rate",
    "lr_scheduler": "optimizer.schedule",
    "lr_scheduler_type": "optimizer.schedule",
    "max_grad_norm": "optimizer.clip_norm",
    "max_steps": "steps",
    "metric_for_best_model": "checkpoint.best",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "num_workers": "data.workers",
    "output_dir": "workdir",
    "per_device_train_batch_size": "batch_size",
    "precision": "dtype",
    "pretrained": "weights.path",
    "resume": "workdir",
    "save_frequency": "checkpoint.every",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "total_steps": "steps",
    "train_data": "data.train",
    "warmup": "optimizer.warmup_steps",
    "wd": "optimizer.weight_decay",
    "zeroshot_frequency": "evaluate.every",
}


def nearest(key: str, known: Collection[str]) -> str:
    """The known key that was probably meant; empty where none is close enough.

    Args:
      key: a dotted key that does not exist.
      known: the dotted keys that do.
    """
    last = key.rpartition(".")[2]
    if _ELSEWHERE.get(last) in known:
        return _ELSEWHERE[last]
    for end in difflib.get_close_matches(last, {k.rpartition(".")[2] for k in known}, 3, 0.75):
        same_ending = [k for k in known if k.rpartition(".")[2] == end]
        return difflib.get_close_matches(key, same_ending, 1, 0)[0]
    return next(iter(difflib.get_close_matches(key, known, 1, 0.8)), "")


def unknown_key(key: str, known: Collection[str]) -> str:
    """The message for a key that does not exist."""
    near = nearest(key, known)
    hint = f"did you mean config.{near}?" if near else "--config FILE --help lists the keys"
    return f"unknown config key config.{key}; {hint}"

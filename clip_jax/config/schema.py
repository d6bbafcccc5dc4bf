"""Every config key once: type, default, bounds, meaning, and whether a resumed run may change it.

`configs/common.py`, `--help`, `docs/config.md` and all checks of single values are made from these
classes. The defaults are CLIP's own hyperparameters (Radford et al. 2021, table 18).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.config.data_schema import Data
from clip_jax.config.evaluate_schema import DTYPES, Evaluate
from clip_jax.config.finetune_schema import Classifier, Ema, Lora
from clip_jax.config.keys import BELOW_ONE, Group, Key, group, key
from clip_jax.config.optimizer_schema import Optimizer
from clip_jax.io.files import JsonObject

ATTENTION = ("auto", "xla", "flash")


@dataclasses.dataclass(frozen=True)
class Weights(Group):
    """The weights that a fresh run starts from, instead of random values."""

    path: str = key(
        "",
        "a run's folder, its checkpoints/STEP or checkpoints/best, or a file or folder of "
        "OpenAI's, open_clip's or transformers'",
    )
    ema: bool = key(False, "of a run: start from its averaged weights, see ema.decay")
    library: str = key(
        "",
        "the library of the file, for your own: the mapping as my_package.my_module:MyMapping; "
        "empty: recognized by the tensors",
    )
    vision: str = key(
        "",
        "in place of path: a file of an image tower, or of a model whose image tower is taken; "
        "what no file gives starts at random",
    )
    text: str = key(
        "", "in place of path: a file of a text tower, or of a model whose text tower is taken"
    )
    optimizer: bool = key(
        False, "of a run: start from its optimizer's state too, at the schedule's beginning"
    )
    resize: bool = key(
        False, "resize positions where the resolution or context length differs from the model's"
    )
    keep_positions: int = key(
        0, "first positions of texts that resizing leaves alone; Long-CLIP's: 20", at_least=0
    )


@dataclasses.dataclass(frozen=True)
class Chunk(Group):
    """Rows of each device that a Transformer layer takes at a time, so that they stay on the chip.

    Layers in chunks need `remat` to be full.
    """

    image: int = key(
        -1,
        "of the image tower; 0: all rows; -1: the best value of the plans for the device",
        at_least=-1,
    )
    text: int = key(
        -1,
        "of the text tower; 0: all rows; -1: the best value of the plans for the device",
        at_least=-1,
    )


@dataclasses.dataclass(frozen=True)
class Objective(Group):
    """The objective that training minimizes."""

    name: str = key(
        "contrastive",
        "contrastive, classification, captioning, coca, bag_of_words or masked_words, or your own "
        "as my_package.my_module:MyObjective",
    )
    options: Mapping[str, Any] = key(
        {},
        "options of captioning, coca or masked_words, or of your own objective, by name",
        user_named=True,
    )
    mix: Mapping[str, Any] = key(
        {},
        "several objectives in place of name: name → weight, or name → weight, name and options",
        user_named=True,
    )


@dataclasses.dataclass(frozen=True)
class Loss(Group):
    """The contrastive objective."""

    layout: str = key(
        "auto",
        "how the batch_size² similarities lie over the devices: dense, blockwise, ring; auto: the "
        "least memory that costs no time",
        resume=True,
    )
    block: int = key(0, "rows of a tile; 0: the layout's own", at_least=0, resume=True)
    label_smoothing: float = key(
        0.0, "share of a target that is spread over the batch", at_least=0, at_most=BELOW_ONE
    )
    image_weight: float = key(
        0.5,
        "weight of the direction image to text; that of text to image is the rest to 1 (ConVIRT: "
        "0.75)",
        at_least=0,
        at_most=1,
    )
    mask_duplicates: bool = key(False, "pairs with equal captions are not each other's negatives")
    multi_positive: bool = key(
        False, "all pairs of one image, or of one data.label, are each other's positives"
    )


@dataclasses.dataclass(frozen=True)
class Mesh(Group):
    """The mesh of devices: the product of its axes is their number; -1: all that are left."""

    data: int = key(-1, "the batch is split over this axis")
    fsdp: int = key(
        1, "the batch, the parameters and the optimizer's state are split over this axis"
    )
    tensor: int = key(1, "each layer's heads and hidden units are split over this axis")


@dataclasses.dataclass(frozen=True)
class Log(Group):
    """Metrics of training."""

    every: int = key(50, "steps between two lines of metrics", at_least=1)
    tensorboard: bool = key(True, "write TensorBoard's files too")
    wandb: str = key("", "the project of Weights & Biases that the run is shown in; empty: none")
    trackio: str = key("", "the project of trackio that the run is shown in; empty: none")


@dataclasses.dataclass(frozen=True)
class Checkpoint(Group):
    """Checkpoints of a run."""

    every: int = key(1_000, "steps between two checkpoints", at_least=1)
    keep: int = key(2, "how many of the last are kept; 0: all", at_least=0)
    keep_every: int = key(
        0, "checkpoints at multiples of this step are kept forever; 0: none", at_least=0
    )
    best: str = key(
        "",
        "a metric of the evaluations, as metrics.jsonl names it; the checkpoint at its largest "
        "value, or with a - before the name its smallest, is kept too",
    )


@dataclasses.dataclass(frozen=True)
class Config(Group):
    """A run's config."""

    workdir: str = key(
        "",
        "the run's folder, on disk or in a bucket (gs://…, s3://…); the same command resumes the "
        "run that it holds",
        resume=True,
    )
    seed: int = key(0, "of all that is random", at_least=0, at_most=2**32 - 1)
    batch_size: int = key(
        32_768, "pairs of a batch, over all devices", at_least=1, at_most=2**31 - 1
    )
    accumulate: int = key(
        1,
        "parts in which a batch goes through the towers; every negative of the batch counts",
        at_least=1,
        resume=True,
    )
    steps: int = key(
        390_625,
        "updates; the default is 32 epochs of 400 million pairs; 0: as many as epochs says",
        at_least=0,
        at_most=10**12,
    )
    epochs: float = key(
        0.0,
        "passes over the data, such as 2.5, in place of steps; 0: steps counts",
        at_least=0,
        at_most=1e9,
    )
    model: Mapping[str, Any] = key(
        {}, "the architecture, as clip_jax.models.architectures names it"
    )
    weights: Weights = group(Weights)
    tokenizer: str = key(
        "clip",
        "clip, sentencepiece:PATH.model, siglip:PATH.model, wordpiece:vocab.txt, "
        "huggingface:FOLDER (with a tokenizer.json), or your own class as "
        "my_package.my_module:MyTokenizer, with :PATH at the end if it reads a file",
    )
    dtype: str = key(
        "bfloat16",
        "of activations; mixed: bfloat16 products between float32 activations, for CPUs. "
        "Parameters (except optimizer.text_weights) and their updates are float32",
        choices=DTYPES,
    )
    remat: str = key(
        "full",
        "what the backward pass computes again to save memory: none; dots: all but matrix "
        "products; full: every layer; full:2: also the inputs of every second layer, and so on: "
        "half of the memory, for half a forward pass more",
        resume=True,
    )
    chunk: Chunk = group(Chunk, resume=True)
    attention: str = key(
        "auto",
        "auto: on NVIDIA GPUs a kernel that stores no matrix of scores, where it is known to "
        "compile, elsewhere XLA's; xla: never the kernel; flash: the kernel on any NVIDIA GPU",
        choices=ATTENTION,
        resume=True,
    )
    data: Data = group(Data)
    objective: Objective = group(Objective)
    loss: Loss = group(Loss)
    optimizer: Optimizer = group(Optimizer)
    ema: Ema = group(Ema)
    lora: Lora = group(Lora)
    classifier: Classifier = group(Classifier)
    mesh: Mesh = group(Mesh, resume=True)
    log: Log = group(Log, resume=True)
    checkpoint: Checkpoint = group(Checkpoint, resume=True)
    evaluate: Evaluate = group(Evaluate, resume=True)
    early_stop: int = key(
        0,
        "evaluations without a better checkpoint.best after which the run ends; 0: none",
        at_least=0,
        resume=True,
    )


def walk(kind: type[Group] = Config, prefix: str = "") -> Iterator[tuple[str, Key, Any]]:
    """Dotted name, `Key` and default of each key, groups before the keys in them.

    Of a group the default is its class.
    """
    default = kind()
    for field in dataclasses.fields(kind):
        value, facts = getattr(default, field.name), field.metadata["key"]
        name = f"{prefix}{field.name}"
        if isinstance(value, Group):
            yield name, facts, type(value)
            yield from walk(type(value), f"{name}.")
        else:
            yield name, facts, value


KEYS: dict[str, Key] = {name: facts for name, facts, _ in walk()}


def defaults(model: Mapping[str, Any]) -> JsonObject:
    """All keys with their defaults, for a model's architecture."""
    return {**Config().to_dict(), "model": dict(model)}

"""Keys of fine-tuning that are groups of their own."""

from __future__ import annotations

import dataclasses

from clip_jax.config.keys import BELOW_ONE, Group, key


@dataclasses.dataclass(frozen=True)
class Ema(Group):
    """The exponential moving average of the parameters, evaluated and saved beside them."""

    decay: float = key(
        0.0,
        "share of the average that a step keeps, such as 0.999; 0: no average",
        at_least=0,
        at_most=BELOW_ONE,
    )
    start: int = key(
        0, "updates before the average begins; until then it equals the parameters", at_least=0
    )


@dataclasses.dataclass(frozen=True)
class Lora(Group):
    """Low-rank adapters of linear layers (LoRA); all other parameters are frozen."""

    rank: int = key(0, "columns of A and rows of B; 0: no adapters", at_least=0)
    alpha: float = key(16.0, "x·A·B is scaled by alpha / rank", at_least=1e-9)
    dropout: float = key(
        0.0, "share of the adapters' inputs that is dropped", at_least=0, at_most=BELOW_ONE
    )
    targets: str = key(
        r".*/(attention|mlp)/\w+/kernel",
        "regular expression that matches the whole names of the kernels with adapters, such as "
        "vision/transformer/blocks/mlp/fc/kernel",
    )


@dataclasses.dataclass(frozen=True)
class Classifier(Group):
    """The classifier on image features that the objective classification trains."""

    labels: str = key(
        "",
        "the classes: a JSON file with a list of names, or a standard set, such as cifar10; empty: "
        "the values of data.label in the data, sorted",
    )
    init: str = key(
        "auto",
        "zero_shot: the texts of the labels; zeros; auto: the classifier of weights.path if it has "
        "the same labels, else zero_shot, or zeros without weights.path",
        choices=("auto", "zero_shot", "zeros"),
    )
    templates: tuple[str, ...] = key(
        (), "prompts of zero_shot, with {} for the label; empty: evaluate.templates"
    )
    label_smoothing: float = key(
        0.0, "share of a target that is spread over the classes", at_least=0, at_most=BELOW_ONE
    )

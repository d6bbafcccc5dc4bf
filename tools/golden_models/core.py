"""Small random models of other libraries, and their outputs and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

BATCH = 3
VOCABULARY, CONTEXT = 40, 8
WORDS = dict(context_length=CONTEXT, vocab_size=VOCABULARY, width=16, heads=2, layers=2)
Families = dict[str, tuple[str, Callable[[Any], "Model"]]]  # by name: the library, and a builder


@dataclasses.dataclass
class Model:
    """A model of another library.

    module: a torch module.
    documents: the JSON files that describe it, by name.
    encode: from (images NCHW, tokens) to image features, text features and logits per image.
    image_size: in pixels.
    file: the file name of its weights.
    more: from (images NCHW, tokens) to further outputs by name.
    images: from a seed to images in another form than normalised pixels, which `encode` takes as
        they are; None: normalised pixels.
    ours: our architecture, as `CLIPConfig.to_dict`, of a model that no document describes; or {}.
    """

    module: Any
    documents: dict[str, Any]
    encode: Callable[[Any, Any], tuple[Any, Any, Any]]
    image_size: int
    file: str = "model.safetensors"
    more: Callable[[Any, Any], dict[str, Any]] = lambda images, tokens: {}
    images: Callable[[int], np.ndarray] | None = None
    ours: dict[str, Any] = dataclasses.field(default_factory=dict)


def randomize(module: Any, seed: int) -> None:
    """Draws every parameter and statistic at random, so that none is a trivial zero or one."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                value.fill_(7)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name == "temperature":
                value.fill_(0.6)
            elif value.ndim < 2:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
            else:
                std = (value[0].numel()) ** -0.5
                value.copy_(std * torch.randn(value.shape, generator=generator))
            if name == "text_decoder.text_projection":
                value[:, -1] *= 6  # captions of some images end soon


def inputs(image_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised images, channels last, and rows of tokens that end in the largest id."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((BATCH, image_size, image_size, 3), np.float32)
    tokens = np.zeros((BATCH, CONTEXT), np.int32)
    for row, length in zip(tokens, (4, CONTEXT, 6), strict=True):
        row[:length] = [
            VOCABULARY - 2,
            *rng.integers(1, VOCABULARY - 2, length - 2),
            VOCABULARY - 1,
        ]
    return images, tokens


def outputs(model: Model, seed: int, train: bool = False) -> dict[str, np.ndarray]:
    """The outputs of a model for its inputs, and the gradients of a weighted sum of its logits.

    Args:
      train: use the batch's statistics; the updated ones are in the result, as `statistic.NAME`.
    """
    import torch

    images, tokens = inputs(model.image_size, seed)
    weights = np.random.default_rng(seed + 1).standard_normal((BATCH, BATCH)).astype(np.float32)
    model.module.train(train)
    model.module.zero_grad()
    if model.images is not None:
        images = model.images(seed)
        pixels = torch.tensor(images)
    else:
        pixels = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    given = pixels, torch.tensor(tokens).long()
    features = model.encode(*given)
    (features[2] * torch.tensor(weights)).sum().backward()
    names = ("image_features", "text_features", "logits_per_image")
    result = {
        name: value.detach().contiguous().numpy()
        for name, value in zip(names, features, strict=True)
    }
    result |= {"images": images, "tokens": tokens, "weights": weights}
    with torch.no_grad():
        more = model.more(*given)
    result |= {name: value.contiguous().numpy() for name, value in more.items()}
    for name, parameter in model.module.named_parameters():
        gradient = parameter.grad
        array = torch.zeros_like(parameter) if gradient is None else gradient
        result[f"gradient.{name}"] = array.numpy().copy()
    if train:
        for name, buffer in model.module.named_buffers():
            if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                result[f"statistic.{name}"] = buffer.numpy().copy()
    return result


def state(model: Model) -> dict[str, np.ndarray]:
    """A copy of a model's state dict."""
    return {name: value.numpy().copy() for name, value in model.module.state_dict().items()}

"""The mapping of OpenAI's files, which have the names of open_clip but no config."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from clip_jax.data.images.preprocess import Preprocess
from clip_jax.models.model_config import MEAN, STD, CLIPConfig, ResNetConfig
from clip_jax.weights.configs.essence import essence
from clip_jax.weights.mappings.leaf import Leaf
from clip_jax.weights.mappings.open_clip import clip_leaves, is_coca, is_open_clip, is_siglip
from clip_jax.weights.mappings.protocol import Document, WeightsMapping


class OpenAI(WeightsMapping):
    """The mapping of OpenAI's CLIP."""

    name = "openai"
    description = "OpenAI's CLIP: a state dict in a .pt file"
    weights_file = "model.pt"
    config_file = ""

    def leaves(self, config: CLIPConfig) -> Iterator[Leaf]:
        """Yields the leaf of every parameter of a model."""
        return clip_leaves(config, self.name)

    def recognizes(self, names: Collection[str]) -> bool:
        """Returns whether tensors of these names can be a CLIP of OpenAI."""
        return is_open_clip(names) and not (is_siglip(names) or is_coca(names))

    def documents(self, config: CLIPConfig, preprocess: Preprocess) -> dict[str, Document]:
        """Returns no files: OpenAI's code sees only the shapes."""
        return {}

    def interpret(
        self, config: CLIPConfig, preprocess: Preprocess, documents: Mapping[str, Document]
    ) -> Document:
        """Returns the essence of the model that OpenAI's code infers from the shapes."""
        values = essence(config)
        vision, text = values["vision"], values["text"]
        values["activation"] = "quick_gelu"  # of both towers
        vision |= dict(heads=max(1, vision["width"] // 64), eps=1e-5, mean=MEAN, std=STD)
        match config.vision:
            case ResNetConfig():
                vision["heads"] = max(1, vision["width"] // 2)
            case _:
                vision |= dict(mlp_ratio=4.0, ragged=False, activation="")
        text |= dict(heads=max(1, text["width"] // 64), mlp_ratio=4.0, eps=1e-5)
        text |= dict(causal=True, activation="")
        return values

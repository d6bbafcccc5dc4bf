"""Protocols of the two towers: what a config of a tower knows about its kind of model.

A tower is a frozen dataclass. Its fields are keys of a config's `model.vision` or `model.text`, so
they hold plain values. `build` makes the module; the other methods say what other parts of the
package need to know. A tower of your own subclasses `VisionTower` or `TextTower`, whose methods
have defaults but for `build` and `flops`. The config names it by its dotted path:
`model.text.kind = "my_package.towers:MyTower"`.

Importing this module, and those of the tower configs, is cheap: `build` imports JAX.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol, TypedDict, runtime_checkable

from clip_jax.errors import UserError
from clip_jax.models.patches import PatchBudget
from clip_jax.models.registry import kind_of
from clip_jax.tokenizers.protocol import Tokenizer

Params = dict[str, Any]  # nested dictionaries of arrays
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")  # of the Transformers' MLPs


class PixelOptions(TypedDict, total=False):
    """Options of how images become a model's pixels, for `data.images.preprocess.Preprocess`."""

    resize: str
    resize_size: int
    interpolation: str
    budget: PatchBudget


@runtime_checkable
class BlockSizes(Protocol):
    """The sizes of a Transformer's blocks."""

    @property
    def width(self) -> int:
        """The number of features of the residual stream."""

    @property
    def layers(self) -> int:
        """The number of blocks."""

    @property
    def heads(self) -> int:
        """The number of attention heads."""

    @property
    def mlp_ratio(self) -> float:
        """The width of an MLP's hidden layer, divided by `width`."""

    @property
    def eps(self) -> float:
        """The number that LayerNorms add to the variance."""


@runtime_checkable
class Tower(Protocol):
    """The protocol that image towers and text towers have in common."""

    @abstractmethod
    def build(
        self,
        embed_dim: int,
        activation: str,
        *,
        dtype: Any,
        remat: str,
        chunk: int,
        rngs: Any,
    ) -> Any:
        """Builds the `nnx.Module`.

        Every `nnx.Param` in it carries a `distributed.param_spec.ParamSpec`.

        Args:
          embed_dim: the number of features of its output.
          activation: the activation of the Transformers' MLPs, a name of `transformer.ACTIVATIONS`.
          dtype: one of `model_config.DTYPES`. Parameters are float32 in each.
          remat: what the backward pass recomputes, a name of `stack.REMAT_POLICIES`.
          chunk: the rows of each device that a layer takes at a time; 0: all. Only for towers with
            a `hidden_width`.
          rngs: an `nnx.Rngs`, the source of the initial values.
        """

    @property
    def blocks(self) -> int:
        """The number of Transformer blocks.

        The last one may compute only the tokens that are read out.
        """
        return 0

    @property
    def tokens(self) -> int:
        """The number of tokens of one image or text in the blocks during training."""
        return 0

    @property
    def hidden_width(self) -> int:
        """The width of the hidden layer of an MLP; 0: layers cannot process rows in chunks."""
        return 0

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return kind_of(self)


@runtime_checkable
class VisionTower(Tower, Protocol):
    """An image tower. Its module maps images [batch, size, size, 3] to [batch, embed_dim].

    The module is called as `module(image, key=keys)`. Images are uint8, or floats that are
    normalised already (see `pixels.normalized`). Those of a tower with a `patch_budget` are packed
    patches, uint8 [batch, patches, bytes] (see `models.patches`). `keys`, one for each image, are
    given in training only: they turn on dropout and batch statistics. A module with a projection
    may offer `pooled(image)` and `project(pooled)`, whose composition it is: linear probes use
    `pooled`.

    Attributes:
      image_size: the side of an image in pixels.
      mean: the mean of R, G and B, in 0…1, by which images are normalised.
      std: the standard deviation of R, G and B by which images are normalised.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @abstractmethod
    def flops(self, embed_dim: int) -> int:
        """Returns the FLOPs of the forward pass of one training image, see `training.flops`."""

    @property
    def patch_budget(self) -> PatchBudget | None:
        """The patches of an image, for a tower that keeps the shapes of images; None: squares."""
        return None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one image as the preprocessing makes it and the module takes it."""
        if self.patch_budget is not None:
            return self.patch_budget.shape
        return self.image_size, self.image_size, 3

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Returns whether the module takes images of a shape; any number of patches will do."""
        if self.patch_budget is not None:
            return len(shape) == 2 and shape[1:] == self.input_shape[1:]
        return shape == self.input_shape

    def sizes(self) -> dict[str, int]:
        """Returns the fields that say how large images are; `resize_positions` makes up for them.

        They are arguments of `clip_jax.load`.
        """
        return {"image_size": self.image_size}

    def grid_shape(self) -> tuple[int, int]:
        """Returns the number of places of an image and the features of each; (0, 0) for none.

        The module of a tower with places has a method `features_and_grid(image, key=keys)`, which
        returns the features of a call and an array [batch, places, features], for decoders.
        """
        return 0, 0

    @property
    def pooling_parts(self) -> tuple[str, ...]:
        """The parts of the module that its features need, and those of its places do not."""
        return ()

    def check(self, embed_dim: int) -> None:
        """Raises UserError if the sizes do not fit together, or do not fit `embed_dim`."""

    def resize_positions(self, params: Params, image_size: int) -> Params:
        """Returns the parameters of this tower for images of another size.

        Raises:
          UserError: the tower cannot be resized.
        """
        raise UserError(
            f"model.vision.image_size={image_size}: a {kind_of(self)} of {self.image_size} pixels "
            "cannot be resized; it has no resize_positions"
        )

    @property
    def any_size(self) -> bool:
        """Whether the same parameters serve any image size."""
        return False

    def preprocess(self) -> PixelOptions:
        """Returns how the published models of this kind prepare images; empty: as CLIP does."""
        return {}

    def without_dropout(self) -> VisionTower:
        """Returns the same tower without the dropout of training."""
        return self

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{kind_of(self)} {self.image_size}px"


@runtime_checkable
class TextTower(Tower, Protocol):
    """A text tower. Its module maps token ids int32 [batch, context] to [batch, embed_dim].

    The module is called as `module(tokens)`; `context` is at most `context_length`.

    Attributes:
      vocab_size: the number of token ids.
      context_length: the number of tokens of a text, padding included.
    """

    vocab_size: int
    context_length: int

    @abstractmethod
    def flops(self, embed_dim: int, tokens: int) -> int:
        """Returns the forward FLOPs of one text of `tokens` tokens, see `training.flops`."""

    @property
    def token_width(self) -> int:
        """The number of features of each token; 0 for none.

        The module of a tower that has them has a method `token_features(tokens)`, which returns an
        array [batch, context, features], for masked words.
        """
        return 0

    def check(self) -> None:
        """Raises UserError if the sizes do not fit together."""

    def resize_positions(self, params: Params, context_length: int, keep: int = 0) -> Params:
        """Returns the parameters of this tower for texts of another length.

        Args:
          params: the parameters of this tower.
          context_length: the number of tokens.
          keep: the number of first positions that stay as they are, see `positions.resize_line`.

        Raises:
          UserError: the tower cannot be resized.
        """
        raise UserError(
            f"model.text.context_length={context_length}: a {kind_of(self)} of "
            f"{self.context_length} tokens cannot be resized; it has no resize_positions"
        )

    @property
    def any_length(self) -> bool:
        """Whether the same parameters serve any length up to that of their table of positions."""
        return False

    @property
    def tokens(self) -> int:
        """The number of tokens of one text in the blocks during training."""
        return self.context_length

    @property
    def blind_to_padding(self) -> bool:
        """Whether tokens after the end of a text change nothing, so that they can be cut off."""
        return False

    def check_tokenizer(self, name: str, tokenizer: Tokenizer) -> None:
        """Checks that the tower can read the rows of a tokenizer.

        Raises:
          UserError: it cannot; names the key and what to do.
        """
        if tokenizer.vocab_size > self.vocab_size:
            raise UserError(
                f"tokenizer {name} has {tokenizer.vocab_size} ids: "
                f"config.model.text.vocab_size={self.vocab_size} is too small"
            )

    def summary(self) -> str:
        """Returns the kind and the sizes as text for people."""
        return f"{kind_of(self)} {self.context_length} of {self.vocab_size:,} tokens"


MAX_LAYERS = 1024  # a file may claim any number, and every layer of it would be named


def check_grid(tower: VisionTower) -> None:
    """Raises UserError if an image tower gives no features of places."""
    if not tower.grid_shape()[0]:
        raise UserError(
            f"model.vision.kind={kind_of(tower)} gives no features of places, which a decoder needs"
        )


def check_activation(side: str, activation: str) -> None:
    """Raises UserError if a tower's activation is neither known nor empty."""
    if activation not in ("", *ACTIVATIONS):
        raise UserError(
            f"model.{side}.activation={activation!r:.80} must be one of {', '.join(ACTIVATIONS)}, "
            "or empty for that of the model"
        )


def check_layers(side: str, layers: int, least: int, key: str = "layers") -> None:
    """Raises UserError if a tower has fewer than `least` layers, or more than it can have."""
    if not least <= layers <= MAX_LAYERS:
        raise UserError(f"model.{side}.{key}={layers} must be from {least} to {MAX_LAYERS}")


def check_blocks(side: str, tower: BlockSizes) -> None:
    """Raises UserError if these sizes make no Transformer block."""
    if tower.heads < 1 or tower.width % tower.heads:
        raise UserError(
            f"model.{side}.heads={tower.heads} does not divide model.{side}.width={tower.width}"
        )
    if hidden_width(tower) < 1:
        raise UserError(f"model.{side}.mlp_ratio={tower.mlp_ratio} leaves its MLPs no width")


def hidden_width(tower: BlockSizes) -> int:
    """Returns the width of the hidden layer of a block's MLP."""
    return round(tower.width * tower.mlp_ratio)

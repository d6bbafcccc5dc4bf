"""CLIP: an image tower and a text tower with a common embedding space."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from clip_jax.config.finetune_schema import Lora
from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import SCALAR, ParamSpecs, mark_head, param_specs
from clip_jax.errors import UserError
from clip_jax.models import classifier
from clip_jax.models.architectures import name_of
from clip_jax.models.dropout import row_keys
from clip_jax.models.generation import Generation, generate
from clip_jax.models.head import DECODER
from clip_jax.models.image_pass import Encoded, encoded_once
from clip_jax.models.layers import activation_dtype
from clip_jax.models.lora import add_adapters
from clip_jax.models.model_config import CLIPConfig
from clip_jax.models.outputs import FEATURES, check_output, image_output
from clip_jax.models.pixels import checked_pixels
from clip_jax.models.second_projection import add_second_projection, project
from clip_jax.models.token_ids import checked_tokens, split_windows, window_mean
from clip_jax.models.tower import Params, check_grid

Keys = Key[Array, ""] | Key[Array, " images"]
Variables = tuple[Params, Params]  # parameters and batch statistics


class Output(NamedTuple):
    """The features of a batch, with the scale and the bias that make logits of them.

    Attributes:
      image_features: unit-norm features of the images, fp32.
      text_features: unit-norm features of the texts, fp32.
      logit_scale: the factor on the cosines of the features.
      logit_bias: the bias of the logits; None for no bias.
    """

    image_features: Float[Array, "images embed_dim"]
    text_features: Float[Array, "texts embed_dim"]
    logit_scale: Float[Array, ""]
    logit_bias: Float[Array, ""] | None = None

    @property
    def logits_per_image(self) -> Float[Array, "images texts"]:
        """Scaled cosines of every image with every text, plus the bias if there is one."""
        logits = self.logit_scale * self.image_features @ self.text_features.T
        return logits if self.logit_bias is None else logits + self.logit_bias

    @property
    def logits_per_text(self) -> Float[Array, "texts images"]:
        """The transpose of `logits_per_image`."""
        return self.logits_per_image.T


def normalize(features: Float[Array, "*batch embed_dim"]) -> Float[Array, "*batch embed_dim"]:
    """Returns features scaled to length one, in fp32; a zero vector stays zero."""
    features = features.astype(jnp.float32)
    square = jnp.sum(features * features, axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class CLIP(nnx.Module):
    """Two towers and a learned temperature (section 2.3).

    Args:
      config: the architecture.
      dtype: one of `model_config.DTYPES`; parameters, LayerNorms and feature norms stay fp32.
      remat: what the backward pass recomputes, see `transformer.Transformer`.
      chunks: the rows of each device that a layer of the image and of the text Transformer takes at
        a time; 0: all.
      lora: the low-rank adapters of linear layers.
      rngs: the source of the initial values.
    """

    dropout = 0.0  # of the adapters' inputs

    def __init__(
        self,
        config: CLIPConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        chunks: tuple[int, int] = (0, 0),
        lora: Lora | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config = config
        self.dtype = activation_dtype(dtype)
        common: dict[str, Any] = dict(dtype=dtype, remat=remat, rngs=rngs)
        sizes = config.tower_features, config.activation
        self.vision: Any = config.vision.build(*sizes, chunk=chunks[0], **common)
        self.text: Any = config.text.build(*sizes, chunk=chunks[1], **common)
        if config.projection_width:
            for tower in (self.vision, self.text):
                add_second_projection(tower, sizes[0], config.embed_dim, dtype=dtype, rngs=rngs)
        if config.log_scale:
            self.logit_scale = _scalar(-math.log(config.temperature))
        else:
            self.temperature = _scalar(config.temperature)
        if config.logit_bias is not None:
            self.logit_bias = _scalar(config.logit_bias)
        if lora and lora.rank:
            add_adapters(self, lora, rngs)
            self.dropout = lora.dropout
        if config.heads:
            built = {
                name: head.build(config, dtype=dtype, remat=remat, rngs=rngs)
                for name, head in config.heads
            }
            self.heads = nnx.Dict(built)
            mark_head(self.heads)
        param_specs(self)  # raises where a parameter of a tower has no metadata

    @property
    def scale(self) -> Float[Array, ""]:
        """The learned factor on the cosines."""
        if self.config.log_scale:
            return jnp.exp(self.logit_scale[...].astype(jnp.float32))
        return 1 / self.temperature[...].astype(jnp.float32)

    def encode_image(
        self,
        image: Any,
        *,
        normalized: bool = False,
        key: Keys | None = None,
        output: str = FEATURES,
    ) -> Float[Array, "batch ..."]:
        """Returns the features of images, or another output of the image tower.

        Args:
          image: [batch, size, size, 3]: integers in 0…255, or floats that are normalised already;
            see `pixels.checked_pixels`.
          normalized: whether features are scaled to length one.
          key: as in `__call__`.
          output: `features`; without `key` also those of `outputs.image_output`.

        Raises:
          UserError: the shape or type is wrong, the values are no pixels, or the tower has no such
            output.
        """
        check_output(output, self.config.vision)
        if key is None:
            image = checked_pixels(image, self.config.vision)
            return self._encode("vision", image, normalized, output)
        if output != FEATURES:
            raise UserError(f"output={output!r} has no place in training: leave out key")
        features, _ = self._train_pass(image, key, places=False)
        return normalize(features) if normalized else features

    def encode_grid(
        self, image: Any, *, key: Keys | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places channels"]]:
        """Returns the features of images, not normalised, and those of their places.

        Args:
          image: as for `encode_image`.
          key: as in `__call__`.

        Raises:
          UserError: the tower gives no features of places, or as for `encode_image`.
        """
        check_grid(self.config.vision)
        if key is None:
            image = checked_pixels(image, self.config.vision)
            features, grid = self.vision.features_and_grid(image)
            features = project(self.vision, features)
        else:
            features, grid = self._train_pass(image, key, places=True)
        return features, grid

    def _train_pass(self, image: Any, key: Keys, places: bool) -> Encoded:
        """Runs the image tower in training; inside `shared_image_pass` once for the same arrays."""

        def encode() -> Encoded:
            pixels = checked_pixels(image, self.config.vision)
            keys = key if key.ndim else jax.random.split(key, len(pixels))
            with row_keys(keys if self.dropout else None):
                if not places:
                    return project(self.vision, self.vision(pixels, key=keys)), None
                features, grid = self.vision.features_and_grid(pixels, key=keys)
                return project(self.vision, features), grid

        return encoded_once(image, key, places, encode)

    def encode_text(
        self, tokens: Any, *, normalized: bool = False, key: Keys | None = None
    ) -> Float[Array, "batch embed_dim"]:
        """Returns the features of texts.

        Args:
          tokens: [batch, context], integers below the size of the vocabulary; see
            `token_ids.checked_tokens`. Or [batch, windows, context] of longer texts, as
            `tokenizers.windows` makes them: then the mean of the windows' unit-norm features.
          normalized: whether features are scaled to length one.
          key: as in `__call__`.

        Raises:
          UserError: tokens are texts, have a wrong shape or type, or are of another tokenizer.
        """
        if getattr(tokens, "ndim", 2) == 3:
            rows, there = split_windows(tokens, self.config.text)
            mean = window_mean(self.encode_text(rows, normalized=True, key=key), there)
            return normalize(mean) if normalized else mean
        tokens = checked_tokens(tokens, self.config.text)
        if key is None or not self.dropout:
            return self._encode("text", tokens, normalized)
        with row_keys(key if key.ndim else jax.random.split(key, len(tokens))):
            features = project(self.text, self.text(tokens))
        return normalize(features) if normalized else features

    def generate(
        self, image: Any, options: Generation, *, key: Key[Array, ""] | None = None
    ) -> Int[Array, "batch tokens"]:
        """Writes a caption for each image by the model's decoder.

        One program is compiled for each number of images and each `options`.

        Args:
          image: as for `encode_image`.
          options: the special tokens, the length, and how tokens are chosen.
          key: the source of what is drawn; None: that of seed 0.

        Returns:
          The tokens: start if there is one, words, end, padding.

        Raises:
          UserError: the model has no decoder, or as for `encode_image`.
        """
        config: Any = self.config
        if config.head(DECODER) is None:
            raise UserError(
                "this model has no decoder: a run with config.objective.name=captioning trains one"
            )
        if options.max_tokens > config.text.context_length:
            raise UserError(
                f"max_tokens={options.max_tokens} must be at most {config.text.context_length}, "
                "the context length of this model"
            )
        image = checked_pixels(image, config.vision)
        graph, params, stats = nnx.split(self, nnx.Param, nnx.BatchStat)
        key = jax.random.key(0) if key is None else key
        return _captions(graph, (params, stats), image, options, key)

    def class_logits(
        self, features: Float[Array, "batch embed_dim"]
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of the model's classifier, which has a class for each of its `labels`.

        Args:
          features: unit-norm features of images.

        Raises:
          UserError: the model has no classifier.
        """
        if self.config.head(classifier.NAME) is None:
            raise UserError(
                "this model has no classifier: a run with config.objective.name=classification "
                "trains one"
            )
        logits: Array = self.heads[classifier.NAME](features, jax.lax.stop_gradient(self.scale))
        return logits

    def _encode(
        self, tower: str, rows: Array, normalized: bool, output: str = FEATURES
    ) -> Float[Array, "batch ..."]:
        graph, params, stats = nnx.split(self, nnx.Param, nnx.BatchStat)
        return _features(graph, (params, stats), rows, tower, normalized, output)

    def __call__(
        self,
        image: Any,
        tokens: Any,
        *,
        key: Keys | None = None,
    ) -> Output:
        """Returns the unit-norm features of images and texts, with the logit scale and the bias.

        Args:
          image: as for `encode_image`.
          tokens: as for `encode_text`.
          key: given in training only: it turns on dropout and batch statistics. One key, or one for
            each image, which makes dropout independent of the batch.
        """
        return self.compared(
            self.encode_image(image, normalized=True, key=key),
            self.encode_text(tokens, normalized=True, key=key),
        )

    def compared(
        self, image: Float[Array, "images embed_dim"], text: Float[Array, "texts embed_dim"]
    ) -> Output:
        """Returns the `Output` of given unit-norm features, with the learned scale and bias.

        Args:
          image: unit-norm features of images.
          text: unit-norm features of texts.
        """
        bias = None if self.config.logit_bias is None else self.logit_bias[...].astype(jnp.float32)
        return Output(image, text, self.scale, bias)

    def __repr__(self) -> str:
        c = self.config
        return (
            f"CLIP({name_of(c) or 'custom'}: image {c.vision.summary()}, text {c.text.summary()}, "
            f"embed_dim {c.embed_dim}, {parameter_count(self):,} parameters)"
        )

    __str__ = __repr__


def _scalar(value: float) -> nnx.Param:
    return nnx.Param(jnp.asarray(value, jnp.float32), spec=SCALAR)


# One compiled program: without jit, the first call in a notebook compiles hundreds.
@partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _features(
    graph: nnx.GraphDef, model_variables: Any, rows: Any, tower: str, normalized: bool, output: str
) -> Any:
    module = getattr(nnx.merge(graph, *model_variables), tower)
    if output == FEATURES:
        features = project(module, module(rows))
    else:
        features = image_output(module, rows, output)
    return normalize(features) if normalized else features


@partial(jax.jit, static_argnums=(0, 3))
def _captions(
    graph: nnx.GraphDef, model_variables: Any, image: Any, options: Generation, key: Any
) -> Array:
    model: CLIP = nnx.merge(graph, *model_variables)
    _, grid = model.vision.features_and_grid(image)
    return generate(model.heads[DECODER].writer(model.text), grid, options, key)


def abstract_model(
    config: CLIPConfig,
    dtype: str = "float32",
    remat: str = "none",
    chunks: tuple[int, int] = (0, 0),
    lora: Lora | None = None,
) -> CLIP:
    """Returns a model with shapes in place of arrays; nothing is allocated.

    The arguments are those of `CLIP`.
    """
    return nnx.merge(*_abstract(config, dtype, remat, chunks, lora))


def specs_of(config: CLIPConfig, lora: Lora | None = None) -> ParamSpecs:
    """Returns the metadata of an architecture's parameters by their paths."""
    return param_specs(abstract_model(config, lora=lora))


@lru_cache(maxsize=32)
def _abstract(
    config: CLIPConfig, dtype: str, remat: str, chunks: tuple[int, int], lora: Lora | None
) -> tuple[nnx.GraphDef, nnx.State]:
    def make() -> CLIP:
        rngs = nnx.Rngs(0)
        return CLIP(config, dtype=dtype, remat=remat, chunks=chunks, lora=lora, rngs=rngs)

    return nnx.split(nnx.eval_shape(make))


def assembled(graph: nnx.GraphDef, model_variables: Variables) -> CLIP:
    """Builds a model from its variables inside a program over a mesh.

    The parameters are all-gathered as `sharding.gather_params` does it.
    """
    params, stats = model_variables
    specs = param_specs(nnx.merge(graph, params, stats))
    return nnx.merge(graph, sharding.gather_params(params, specs), stats)


def variables(model: CLIP) -> Variables:
    """Returns a model's parameters and batch statistics.

    Returns:
      Two trees: nested dictionaries of arrays, or of shapes if the model holds shapes.
    """
    params, stats = nnx.state(model, nnx.Param, nnx.BatchStat)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def parameter_count(model: nnx.Module) -> int:
    """Returns the number of learned values of a model, or of its `nnx.eval_shape`."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))

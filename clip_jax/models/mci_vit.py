"""The vision Transformer of MobileCLIP-B (Vasu et al. 2024): a convolutional stem before ViT-B."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from clip_jax.distributed import sharding
from clip_jax.distributed.param_spec import POSITIONS, VECTOR
from clip_jax.models.convolution import BatchNorm, Convolution
from clip_jax.models.initializers import TIMM_BLOCK, TIMM_LINEAR, TIMM_TABLE, TORCH, normal
from clip_jax.models.layers import activation_dtype, layer_norm
from clip_jax.models.mci_vit_configs import WINDOWS, MCiViTConfig
from clip_jax.models.pixels import normalized
from clip_jax.models.projection import ProjectedModule, projection
from clip_jax.models.transformer import Transformer
from clip_jax.models.vit import prepend

_EPS = 1e-5  # of batch normalizations


class Stem(nnx.Module):
    """Three convolutions that tile an image; the first two with a batch normalization and GELU."""

    def __init__(self, config: MCiViTConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        inputs = 3
        for i, (window, outputs) in enumerate(zip(WINDOWS, config.stem_widths, strict=True), 1):
            last = i == len(WINDOWS)
            convolution = Convolution(
                inputs,
                outputs,
                window,
                stride=window,
                padding=(0, 0),
                kernel_init=TORCH.kernel,
                bias_init=TORCH.bias(window**2 * inputs) if last else None,
                dtype=dtype,
                rngs=rngs,
            )
            setattr(self, f"conv{i}", convolution)
            if not last:
                norm = BatchNorm(outputs, eps=_EPS, momentum=config.momentum, rngs=rngs)
                setattr(self, f"bn{i}", norm)
            inputs = outputs

    def __call__(
        self, x: Float[Array, "batch height width 3"], train: bool
    ) -> Float[Array, "batch rows columns features"]:
        """Returns the features of the patches."""
        x = jax.nn.gelu(self.bn1(self.conv1(x), train), approximate=False)
        x = jax.nn.gelu(self.bn2(self.conv2(x), train), approximate=False)
        return self.conv3(x)


class MCiViT(ProjectedModule):
    """A vision Transformer over the patches of a `Stem`; its class token has no position."""

    def __init__(
        self,
        config: MCiViTConfig,
        embed_dim: int,
        activation: str,
        *,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        chunk: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        del activation  # always GELU
        self.config = config
        self.dtype = activation_dtype(dtype)
        width, common = config.width, dict(dtype=dtype, rngs=rngs)
        self.stem = Stem(config, **common)
        self.class_embedding = nnx.Param(normal(1e-6)(rngs.params(), (width,)), spec=VECTOR)
        self.positional_embedding = nnx.Param(
            TIMM_TABLE(rngs.params(), config.grid_shape()), spec=POSITIONS
        )
        self.transformer = Transformer(
            config, "gelu", init=TIMM_BLOCK, causal=False, remat=remat, chunk=chunk, **common
        )
        self.ln_post = layer_norm(width, config.eps, rngs)
        self.projection = projection(config, width, embed_dim, classifier=TIMM_LINEAR, **common)

    def pooled(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> Float[Array, "batch features"]:
        """Returns the class token after the blocks, before the projection."""
        return self.ln_post(self.transformer(self._tokens(image, key is not None), at=0)[:, 0])

    def features_and_grid(
        self, image: Num[Array, "batch height width 3"], *, key: Key[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch embed_dim"], Float[Array, "batch places features"]]:
        """Returns the features of a call, and the normalised output for each patch."""
        x = self.transformer(self._tokens(image, key is not None))
        x = self.ln_post(x).astype(self.dtype)
        return self.project(x[:, 0]), x[:, 1:]

    def after_layer(
        self, image: Num[Array, "batch height width 3"], layer: int
    ) -> Float[Array, "batch tokens features"]:
        """Returns the output of a block, counted from 1, for every token."""
        return self.transformer.first(self._tokens(image, False), layer)

    def _tokens(
        self, image: Num[Array, "batch height width 3"], train: bool
    ) -> Float[Array, "batch tokens features"]:
        """Returns the input of the blocks: a class token, and the patches with their positions."""
        x = self.stem(normalized(image, self.config).astype(self.dtype), train)
        x = sharding.constrain_rows(x.reshape(x.shape[0], -1, x.shape[-1]))
        x = x + self.positional_embedding[...].astype(self.dtype)
        return prepend(self.class_embedding[...].astype(self.dtype), x)

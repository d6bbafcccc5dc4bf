"""What the configs of our own towers have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from clip_jax.errors import UserError
from clip_jax.models.flop_counts import product
from clip_jax.models.registry import MODULES
from clip_jax.models.tower import Params, hidden_width

PROJECTIONS = ("none", "linear", "mlp")


class BuiltInTower:
    """A tower whose module is found by its `kind`, so that reading its config imports no JAX."""

    kind: ClassVar[str]
    in_chunks: ClassVar[bool] = False  # whether the module can take rows in chunks

    def build(self, embed_dim: int, activation: str, *, chunk: int, **options: Any) -> Any:
        """Builds the module, see `tower.Tower.build`."""
        if self.in_chunks:
            options["chunk"] = chunk
        return MODULES.get(self.kind)(self, embed_dim, activation, **options)


class TransformerTower(BuiltInTower):
    """A tower of Transformer blocks.

    Attributes:
      width: the number of features of the residual stream.
      layers: the number of blocks.
      heads: the number of attention heads.
      mlp_ratio: the width of an MLP's hidden layer, divided by `width`.
      eps: the number that LayerNorms add to the variance.
    """

    in_chunks = True
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    eps: float

    @property
    def blocks(self) -> int:
        """The number of Transformer blocks."""
        return self.layers

    @property
    def hidden_width(self) -> int:
        """The width of the hidden layer of an MLP."""
        return hidden_width(self)


class AnySizeTower(BuiltInTower):
    """An image tower without positions, whose parameters serve any image size."""

    @property
    def any_size(self) -> bool:
        """Whether the same parameters serve any image size."""
        return True

    def resize_positions(self, params: Params, image_size: int) -> Params:
        """Returns the parameters as they are: there are no positions."""
        return params


class WithProjection(BuiltInTower):
    """A tower whose pooled features open_clip projects to the embedding space.

    Attributes:
      projection: `none`; `linear`, a matrix; `mlp`, two layers with a GELU between them.
    """

    projection: str

    def projection_hidden(self, embed_dim: int) -> int:
        """Returns the width of the hidden layer of the projection `mlp`."""
        return 2 * embed_dim

    def projection_flops(self, features: int, embed_dim: int) -> int:
        """Returns the FLOPs of projecting the features of one image or text."""
        if self.projection == "none":
            return 0
        if self.projection == "linear":
            return product(1, features, embed_dim)
        hidden = self.projection_hidden(embed_dim)
        return product(1, features, hidden) + product(1, hidden, embed_dim)


class ProjectedTower(WithProjection):
    """An image tower of timm, whose pooled features open_clip projects to the embedding space.

    Attributes:
      projection_bias: whether the matrix has a bias, as timm's own classifier does.
    """

    projection_bias: bool

    @property
    def pooling_parts(self) -> tuple[str, ...]:
        """The parts that the features of places do not need, see `VisionTower`."""
        return ("projection",)

    def check_projection(self, features: int, embed_dim: int) -> None:
        """Raises UserError if the projection is unknown, or cannot give `embed_dim` features."""
        if self.projection not in PROJECTIONS:
            raise UserError(
                f"model.vision.projection={self.projection!r:.80} must be one of "
                f"{', '.join(PROJECTIONS)}"
            )
        if self.projection_bias and self.projection != "linear":
            raise UserError(
                "model.vision.projection_bias needs model.vision.projection='linear', not "
                f"{self.projection!r}"
            )
        if self.projection == "none" and features != embed_dim:
            raise UserError(
                f"with model.vision.projection='none', model.embed_dim={embed_dim} must be the "
                f"{features} features of the tower"
            )

"""The protocol of heads: parts of a model beside its towers, which an objective trains.

A head has parameters of its own, at `heads/NAME/…` in the tree of parameters. Checkpoints hold
them; files of other libraries have no place for them, except for the decoder of CoCa.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol, runtime_checkable

from clip_jax.models.tower import Params

DECODER = "decoder"  # the name of the head that writes captions, in `model.heads`


@runtime_checkable
class Head(Protocol):
    """The config of a head: a frozen dataclass, whose fields are keys of `model.heads.NAME`."""

    @abstractmethod
    def build(self, model_config: Any, *, dtype: Any, remat: str, rngs: Any) -> Any:
        """Builds the `nnx.Module`.

        Every `nnx.Param` in it carries a `distributed.param_spec.ParamSpec`.

        Args:
          model_config: the `CLIPConfig` of the model.
          dtype: one of `model_config.DTYPES`. Parameters are float32 in each.
          remat: what the backward pass recomputes, a name of `stack.REMAT_POLICIES`.
          rngs: an `nnx.Rngs`, the source of the initial values.
        """

    def resize_positions(self, params: Params, context_length: int) -> Params:
        """Returns the parameters of this head for texts of another length."""
        return params

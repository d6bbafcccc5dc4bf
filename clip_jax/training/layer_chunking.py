"""How many rows a Transformer's layer takes at a time, so that they stay on the chip."""

from __future__ import annotations

from collections.abc import Mapping

from clip_jax.distributed.hardware import Chip
from clip_jax.models.model_config import CLIPConfig, TextTower, VisionTower

AUTO = -1

# MB that the widest activation of a chunk, an MLP's hidden layer, takes at the best of the sizes
# that were tried (docs/benchmarks.md), by the compiler's estimate. A chip that is not here takes
# all rows at once.
_WIDEST = {"v5e": 20.5, "v5p": 78.0, "v6e": 20.5}
# Tokens below which attention is so small that chunks cost time: ViT-B/32 has 50.
_SHORT = 64


def picked(
    chunk: Mapping[str, int], model: CLIPConfig, chip: Chip | None, rows: int, remat: str
) -> tuple[int, int]:
    """The rows that a layer of the image and of the text tower takes at once; 0: all.

    Args:
      chunk: `config.chunk`.
      model: whose towers they are; only Transformers go in chunks.
      chip: what trains it, None where it is not known.
      rows: that each device holds of the batch, or of a part of it.
      remat: chunks are for `full`.
    """

    def of(tower: VisionTower | TextTower, asked: int) -> int:
        if not tower.hidden_width:
            return 0
        if asked != AUTO or remat != "full" or chip is None or chip.name not in _WIDEST:
            return max(asked, 0)
        if tower.tokens < _SHORT:
            return 0
        row = 2 * tower.tokens * tower.hidden_width
        most = int(_WIDEST[chip.name] * 1e6 / row)
        size = max((m for m in range(1, rows + 1) if rows % m == 0 and m <= most), default=1)
        return size if size < rows else 0

    return of(model.vision, chunk["image"]), of(model.text, chunk["text"])

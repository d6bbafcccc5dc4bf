"""Chooses how many rows a Transformer layer takes at a time, so that activations stay on chip."""

from __future__ import annotations

from collections.abc import Mapping

from clip_jax.distributed.hardware import Chip
from clip_jax.models.model_config import CLIPConfig, TextTower, VisionTower
from clip_jax.models.stack import is_full

AUTO = -1

# MB of the widest activation of a chunk, the hidden layer of the MLP, at the best of the sizes
# that were compiled (docs/benchmarks.md), by chip and cores of a device. Where two cores are one
# device, products leave no large results on the chip, so that small chunks gain nothing. Chips that
# are not listed take all rows at once.
_WIDEST = {("v5e", 1): 20.5, ("v5p", 2): 78.0, ("v5p", 1): 20.5, ("v6e", 1): 20.5}
# Of GPUs: the temporary values of a layer are few, while a chunk's products still fill the GPU.
_WIDEST_ON_GPUS = 160.0
# With fewer tokens attention is so small that chunks cost a TPU time: ViT-B/32 has 50.
_SHORT = 64


def choose_chunks(
    chunk: Mapping[str, int], model: CLIPConfig, chip: Chip | None, rows: int, remat: str
) -> tuple[int, int]:
    """Returns how many rows a layer of the image tower and of the text tower takes at a time.

    Args:
      chunk: `config.chunk`.
      model: the architecture; only Transformers work in chunks.
      chip: the chip that trains; None if it is unknown.
      rows: the number of rows of the batch, or of a part of it, on each device.
      remat: `config.remat`; only `full` and `full:N` allow chunks.

    Returns:
      The rows of the image tower and of the text tower; 0: all rows at once.
    """

    widest = _widest(chip)

    def rows_for(tower: VisionTower | TextTower, requested: int) -> int:
        if not tower.hidden_width:
            return 0
        if requested != AUTO or not is_full(remat) or widest is None:
            return max(requested, 0)
        if tower.tokens < _SHORT and widest != _WIDEST_ON_GPUS:
            return 0
        bytes_per_row = 2 * tower.tokens * tower.hidden_width
        limit = int(widest * 1e6 / bytes_per_row)
        size = max((m for m in range(1, rows + 1) if rows % m == 0 and m <= limit), default=1)
        return size if size < rows else 0

    return rows_for(model.vision, chunk["image"]), rows_for(model.text, chunk["text"])


def _widest(chip: Chip | None) -> float | None:
    """Returns the MB of the widest activation of a chunk; None: all rows at once."""
    if chip is None:
        return None
    return _WIDEST_ON_GPUS if chip.bandwidth else _WIDEST.get((chip.name, chip.cores))

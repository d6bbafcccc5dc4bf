"""Checks of the files that a conversion writes."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from clip_jax.errors import UserError
from clip_jax.models.model_config import CLIPConfig
from clip_jax.weights.param_mapping import MAPPINGS, Library, mapping_of

if TYPE_CHECKING:
    import numpy as np

    from clip_jax.data.images.preprocess import Preprocess
    from clip_jax.models.clip import Variables
    from clip_jax.tokenizers import Tokenizer


# Files by which a folder's tokenizer is recognized, here or in another library.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)


def check_tokenizer_files(
    folder: Path, tokenizer: Tokenizer | None, to: Library, overwrite: bool
) -> None:
    """Raises UserError for files of a tokenizer that would be replaced unasked, or remain.

    One that remains beside those of another tokenizer would be read in its place.
    """
    write = getattr(tokenizer, f"write_{to}", None)
    there = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    if write is None or not there:
        return
    with tempfile.TemporaryDirectory() as place:
        write(Path(place))
        written = {path.name for path in Path(place).iterdir()}
    for name in there:
        if name not in written:
            raise UserError(
                f"{folder / name} is of another tokenizer than the model's, whose files don't "
                "replace it: move it away, or give another DEST"
            )
        if not overwrite:
            raise UserError(f"{folder / name} exists: give --overwrite, or another DEST")


def check_transformers_tokenizer(tokenizer: Tokenizer, name: str, config: CLIPConfig) -> None:
    """Raises UserError for a tokenizer that transformers would use otherwise than the model's runs.

    It pads CLIP's rows with the end token, which only a tower that ignores padding may see. For its
    own siglip2 it takes SigLIP 2's tokenizer, whatever class a folder names.
    """
    from clip_jax.tokenizers.bpe import BPE

    reason = ""
    if config.vision.patch_budget is not None and isinstance(tokenizer, BPE):
        reason = "takes the tokenizer of SigLIP 2 for such a model"
    elif isinstance(tokenizer, BPE) and not config.text.blind_to_padding:
        reason = "pads its rows with another token, which this text tower reads"
    if reason:
        raise UserError(
            f"transformers {reason}, so {name} can't be its tokenizer there: tokenize with "
            "clip_jax.tokenizers"
        )


def check_range(parameters: Variables, dtype: str) -> None:
    """Raises UserError for numbers that float16 cannot represent."""
    import numpy as np

    from clip_jax.weights import arrays

    if dtype != "float16":
        return
    for path, leaf in arrays.flat(*parameters):
        largest = float(np.abs(np.asarray(leaf)).max(initial=0))
        if 65504 < largest < math.inf:
            raise UserError(f"{path} reaches {largest:g}, too large for float16: use bfloat16")


def check_written(
    file: Path,
    to: Library,
    parameters: Variables,
    config: CLIPConfig,
    preprocess: Preprocess,
    dtype: str,
) -> None:
    """Checks that the files describe the model that was written, and hold it bit for bit."""
    import numpy as np

    from clip_jax.models.architectures import name_of
    from clip_jax.weights import arrays, configs, library

    weights = library.SavedWeights(file, to, config, preprocess, None)
    has_config = bool(mapping_of(to).config_file)
    if file.name in library.usual_files(to) and (has_config or name_of(config)):
        # reads the config beside it, too; the names of our libraries are recognized
        weights = library.find_weights(file, library=None if to in MAPPINGS else to)
        essences = configs.essence(config), configs.essence(weights.config)
        for key, ours, theirs in configs.differences(*essences):
            raise UserError(f"{file} reads back with model.{key}={theirs!r} in place of {ours!r}")
    back = dict(arrays.flat(*library.read_variables(weights, "keep")))
    for path, leaf in arrays.flat(*parameters):
        ours, theirs = np.asarray(leaf), np.asarray(back[path])
        if dtype != "keep" and ours.dtype.kind != "i":
            ours = ours.astype(arrays.DTYPES[dtype])
        if ours.dtype != theirs.dtype or not np.array_equal(_bits(ours), _bits(theirs)):
            raise UserError(f"{file}: {path} reads back otherwise than it was written")


def _bits(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view("u1")

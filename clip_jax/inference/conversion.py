"""Converting a model: from a run or another library's files into another library's files."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from clip_jax.errors import UserError, is_disk_full, megabytes
from clip_jax.inference.conversion_checks import (
    check_range,
    check_tokenizer_files,
    check_transformers_tokenizer,
    check_written,
)
from clip_jax.io import files
from clip_jax.io.buckets import as_path
from clip_jax.models.model_config import CLIPConfig
from clip_jax.weights.param_mapping import Library, mapping_of, title_of

if TYPE_CHECKING:
    from clip_jax.data.images.preprocess import Preprocess
    from clip_jax.inference.model_source import ModelSource
    from clip_jax.models.clip import Variables
    from clip_jax.tokenizers import Tokenizer

DTYPES = ("keep", "float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A summary of a conversion.

    Attributes:
      library: the name of the library whose files were read, for messages.
      model: a description of the architecture.
      parameters: the number of parameters.
      dtype: the dtypes that the parameters were read in.
      files: the size in bytes of each written file, by path.
      tensors: the number of tensors in the written file.
    """

    library: str
    model: str
    parameters: int
    dtype: list[str]
    files: dict[str, int]
    tensors: int


def convert(
    source: str | Path | ModelSource,
    dest: str | Path,
    to: Library,
    *,
    source_library: Library | None = None,
    model: str | None = None,
    dtype: str = "keep",
    image_size: int | None = None,
    context_length: int | None = None,
    keep_positions: int = 0,
    max_num_patches: int | None = None,
    activation: str | None = None,
    tokenizer: str | None = None,
    overwrite: bool = False,
    ema: bool = False,
    adapters: str | Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Conversion:
    """Writes a model for another library, reads it back and compares.

    Args:
      source: a run, another library's file or folder, or a model that is open already.
      dest: a folder or a file, as for `weights.export.write`.
      to: the library to write for: a name of `MAPPINGS`, or the dotted path of a user's own.
      source_library: the library whose names `source` uses; None: it is recognized.
      model: the architecture of `source`, if no config names it.
      dtype: the dtype of the written parameters, one of `DTYPES`.
      image_size: a new side of images, in pixels, to which positions are resized.
      context_length: a new length of texts, in tokens, to which positions are resized.
      keep_positions: the number of first positions of texts that stay as they are then, while the
        others are stretched; Long-CLIP keeps 20.
      max_num_patches: the most patches of an image, of SigLIP 2 NaFlex.
      activation: another activation function for the written model.
      tokenizer: a name for `tokenizers.load`; None: that of the source.
      overwrite: whether existing files are replaced.
      ema: whether to use the averaged weights of a run.
      adapters: a file that `--to lora` wrote; its adapters are merged into the weights.
      note: called with each line that the user should know.

    Raises:
      UserError: before anything is written: a source that cannot be read, a model that the library
        cannot represent, or a destination that cannot be written; and files that differ when read.
    """
    from clip_jax.weights import arrays, positions

    file = _destination(dest, to)
    original = _open_original(source, model, source_library, ema, adapters)
    notes: list[str] = []  # a conversion that is refused prints the reason alone
    original = _announced(original, to, notes.append)
    sizes = dict(
        image_size=image_size, context_length=context_length, max_num_patches=max_num_patches
    )
    config = _convert_config(original, to, sizes, activation, notes.append)
    target = _plan(original, file, to, config, dtype, tokenizer, overwrite, notes.append)
    for line in notes:
        note(line)

    # resized positions are rounded only once
    params, stats = original.read("keep" if dtype == "keep" else "float32")
    params, _ = positions.resize_model(
        params, original.config, keep_positions=keep_positions, **sizes
    )
    leaves = [leaf for _, leaf in arrays.flat(params)]
    return Conversion(
        library=original.library,
        model=target.description,
        parameters=sum(leaf.size for leaf in leaves),
        dtype=sorted({str(leaf.dtype) for leaf in leaves}),
        files=_write(target, (params, stats)),
        tensors=target.tensors,
    )


def _open_original(
    source: str | Path | ModelSource,
    model: str | None,
    library: Library | None,
    ema: bool,
    adapters: str | Path | None,
) -> ModelSource:
    """Opens the model that is converted; arguments as for `convert`."""
    from clip_jax.inference.adapters import adapted
    from clip_jax.inference.model_source import ModelSource, is_run, open_model_source

    if isinstance(source, ModelSource):
        original = source
    elif model is not None and is_run(as_path(source)):
        raise UserError(f"{source} is a run, which says what it is: leave out --model")
    else:
        original = open_model_source(source, model, None, library, ema=ema)
    return original if adapters is None else adapted(original, adapters)


def _announced(original: ModelSource, to: Library, note: Callable[[str], None]) -> ModelSource:
    """Notes what was assumed about a model, and returns it without the heads that are left out."""
    if original.remarks:
        note("; ".join(original.remarks))
    kept = mapping_of(to).heads(original.config)
    names = [name for name, _ in original.config.heads if name not in kept]
    if names:
        verb = "is" if len(names) == 1 else "are"
        note(
            f"{title_of(to)} has no place for the model's {' and '.join(names)}, which {verb} left "
            "out"
        )
    for side in original.untrained:
        tower = {"vision": "image"}.get(side, side)
        note(f"the {tower} tower has random values, because no objective trained it")
    return original.without_heads(names)


@dataclasses.dataclass(frozen=True)
class _Target:
    """The files to write, after all checks that need no parameters."""

    file: Path
    library: Library
    config: CLIPConfig
    preprocess: Preprocess
    tokenizer: Tokenizer | None
    dtype: str
    description: str
    tensors: int


def _plan(
    original: ModelSource,
    file: Path,
    to: Library,
    config: CLIPConfig,
    dtype: str,
    tokenizer: str | None,
    overwrite: bool,
    note: Callable[[str], None],
) -> _Target:
    """Checks everything that can be checked before parameters are read."""
    from clip_jax.models.clip import abstract_model, variables
    from clip_jax.weights import arrays, export

    preprocess = original.preprocess.fitted(config.vision)
    documents = export.documents(config, to, preprocess)
    abstract = abstract_model(config)
    tensors = arrays.to_tensors(variables(abstract), config, to, arrays.DTYPES[dtype])
    _check_torch(file)
    usual = dataclasses.replace(preprocess, half="even") == type(preprocess)(preprocess.size)
    if to == "openai" and not usual:
        note(f"OpenAI's code prepares images in its own way, not by {preprocess}")
    trusted = tokenizer is not None
    written_tokenizer = _find_tokenizer(
        tokenizer or original.tokenizer, config, to, note, trusted=trusted
    )
    for values in documents.values() if to == "open_clip" else ():
        encoder = values["model_cfg"]["text_cfg"].get("hf_model_name")
        if encoder:
            note(
                f"open_clip builds the text tower from the config of {encoder} on Hugging Face's "
                "hub, which it downloads once"
            )
    _check_free(file, documents, overwrite)
    check_tokenizer_files(file.parent, written_tokenizer, to, overwrite)
    _check_room(file, sum(t.dtype.itemsize * math.prod(t.shape) for t in tensors.values()))
    return _Target(
        file, to, config, preprocess, written_tokenizer, dtype, str(abstract), len(tensors)
    )


def _write(target: _Target, parameters: Variables) -> dict[str, int]:
    """Writes the files and reads them back; returns the bytes of each."""
    from clip_jax.weights import export

    file, config, dtype = target.file, target.config, target.dtype
    check_range(parameters, dtype)
    before = _listing(file.parent)
    with _write_errors(file):
        export.write(
            file,
            parameters,
            config,
            target.library,
            preprocess=target.preprocess,
            tokenizer=target.tokenizer,
            dtype=dtype,
        )
    after = _listing(file.parent)
    check_written(file, target.library, parameters, config, target.preprocess, dtype)
    return {str(path): path.stat().st_size for path in after if after[path] != before.get(path)}


def _convert_config(
    original: ModelSource,
    to: Library,
    sizes: Mapping[str, int | None],
    activation: str | None,
    note: Callable[[str], None],
) -> CLIPConfig:
    """Returns the architecture that is written, of other `sizes`; notes what will differ."""
    from clip_jax.weights import positions

    if original.dtype not in ("", "float32"):
        note(
            f"it was trained with config.dtype={original.dtype}; {title_of(to)} computes in "
            "float32 unless told otherwise, so that features differ in their last digits"
        )
    config = positions.resize_config(original.config, **sizes)
    for line in _resizings(original.config, config):
        note(line)
    if activation not in (None, config.activation):
        note(f"it computes {activation} from here on, not {config.activation}")
        config = dataclasses.replace(config, activation=activation)
    return config


@contextmanager
def _write_errors(file: Path) -> Iterator[None]:
    """Reports a failure to write as one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        if not isinstance(error, OSError) and not is_disk_full(error):
            raise
        reason = getattr(error, "strerror", None) or "no space left on the device"
        raise UserError(f"{file} cannot be written ({reason})") from None


def _destination(dest: str | Path, to: Library) -> Path:
    """Returns the file of the weights; raises UserError if it cannot be written."""
    from clip_jax.inference.model_source import is_run
    from clip_jax.weights import export

    file = export.weights_file(dest, to)
    folder = file.parent
    if file.is_dir():
        raise UserError(f"{file} is a folder: name another DEST")
    if Path(dest).suffix in (".pth", ".ckpt") and not Path(dest).is_dir():
        raise UserError(f"DEST {dest} is no folder and no .safetensors, .bin or .pt file")
    existing = files.nearest_folder(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{file} cannot be written: {existing} is no folder that you may write to")
    if is_run(folder):
        raise UserError(f"{folder} is the folder of a run: name another DEST")
    return file


def _check_torch(file: Path) -> None:
    if file.suffix != ".safetensors" and find_spec("torch") is None:
        raise UserError(
            f"{file} needs torch to be written: pip install torch, or name it "
            f"{file.with_suffix('.safetensors')}"
        )


def _check_free(file: Path, documents: Iterable[str], overwrite: bool) -> None:
    for path in (file, *(file.parent / name for name in documents)):
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists: give --overwrite, or another DEST")


def _check_room(file: Path, size: int) -> None:
    free = shutil.disk_usage(files.nearest_folder(file.parent)).free
    if size > free:
        raise UserError(f"{file} needs {megabytes(size)}, the disk has {megabytes(free)} left")


def _resizings(old: CLIPConfig, new: CLIPConfig) -> Iterator[str]:
    sizes = old.vision.image_size, new.vision.image_size
    lengths = old.text.context_length, new.text.context_length
    if sizes[0] != sizes[1] and not new.vision.patch_budget:
        yield f"positions of images resized from {sizes[0]} to {sizes[1]} pixels"
    if lengths[0] != lengths[1]:
        yield f"positions of texts resized from {lengths[0]} to {lengths[1]} tokens"


def _find_tokenizer(
    name: str | None,
    config: CLIPConfig,
    to: Library,
    note: Callable[[str], None],
    *,
    trusted: bool,
) -> Tokenizer | None:
    """Returns the tokenizer whose files are written beside the weights; notes if there is none."""
    from clip_jax import tokenizers

    if name is None:
        note("no tokenizer is known of it: --tokenizer names one")
        return None
    if to not in ("hugging_face", "open_clip"):
        if name != "clip":
            note(f"{to} has no place for the tokenizer {name}: tokenize with clip_jax.tokenizers")
        return None
    try:
        tokenizer = tokenizers.load(name, config.text.context_length, trusted=trusted)
        if tokenizer.vocab_size > config.text.vocab_size:
            raise UserError(
                f"the tokenizer {name} has {tokenizer.vocab_size} ids, the model only "
                f"{config.text.vocab_size}"
            )
        needed = "open_clip_settings" if to == "open_clip" else f"write_{to}"
        if not hasattr(tokenizer, needed):
            raise UserError(
                f"the tokenizer {name} has no {needed}: its module goes beside the model"
            )
        if to == "hugging_face":
            check_transformers_tokenizer(tokenizer, name, config)
    except UserError as error:
        if trusted:
            raise
        note(f"{name} is not written: {error}")
        return None
    return tokenizer


def _listing(folder: Path) -> dict[Path, tuple[int, int]]:
    """Returns the files of a folder; their values change when they are replaced."""
    if not folder.is_dir():
        return {}
    return {p: (s.st_ino, s.st_mtime_ns) for p in sorted(folder.iterdir()) for s in [p.stat()]}

"""A model in another library's files: what it is, its variables, and writing one."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from clip_jax import tokenizers
from clip_jax.data.images import preprocess as preprocessing
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.errors import UserError
from clip_jax.io import files
from clip_jax.models import architectures
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import Variables, abstract_model, variables
from clip_jax.models.model_config import CLIPConfig, EfficientNetConfig, TextConfig, VisionConfig
from clip_jax.weights import arrays, configs
from clip_jax.weights.param_mapping import IGNORED, OPENAIS_OWN, Library, leaves
from clip_jax.weights.tensors import ModelTensors, Tensors, open_model

CONFIG = {"hugging_face": "config.json", "open_clip": "open_clip_config.json"}
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"  # all that transformers 5 writes
WEIGHTS = {
    "hugging_face": "model.safetensors",
    "open_clip": "open_clip_model.safetensors",
    "openai": "model.pt",
}


# The names that weights have in folders whose configs are about them.
USUAL = (*WEIGHTS.values(), "pytorch_model.bin", "open_clip_pytorch_model.bin")


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file or folder of weights is.

    path: the file or folder.
    library: whose names it uses.
    config: the architecture; sizes are the file's own.
    preprocess: from a picture to pixels.
    tokenizer: as for `tokenizers.load`; None where the files hold none.
    guessed: what was taken for granted, in words, or nothing.
    """

    path: Path
    library: Library
    config: CLIPConfig
    preprocess: Preprocess
    tokenizer: str | None
    guessed: str = ""


def is_weights(path: Path) -> bool:
    """Whether a folder holds another library's model, also in Hugging Face's cache."""
    path = _snapshot(path)
    if (path / CONFIG["open_clip"]).is_file():
        return True
    config = path / CONFIG["hugging_face"]  # a run's folder has one of that name too
    return config.is_file() and "model_type" in files.read_json(config)


def _snapshot(path: Path) -> Path:
    """What `main` is of a model's folder in Hugging Face's cache; any other path as it is."""
    main = path / "refs" / "main"
    if not os.path.isfile(main):
        return path
    commit = files.read_small(main, 1 << 20, "commit").decode(errors="replace").strip()
    snapshot = path / "snapshots" / commit
    return snapshot if commit.isalnum() and snapshot.is_dir() else path


def find(path: str | Path, name: str | None = None, activation: str | None = None) -> Found:
    """What the weights at `path` are, before they are read.

    Args:
      path: a file (.safetensors, .bin, .pt), or a folder of transformers' or open_clip's.
      name: the architecture, as in `models.architectures`; needed where no config stands beside the
        weights and their shapes are those of none that is known.
      activation: what a CLIP's MLPs compute where no config beside it says so; None: QuickGELU.

    Raises:
      UserError: no such file, no CLIP in it, or another model than `name`.
    """
    path = _snapshot(Path(path).expanduser())
    with open_model(path) as tensors:
        library = _library(tensors)
        folder = path if path.is_dir() else path.parent
        beside = folder / CONFIG.get(library, "")
        guessed = _left_out(tensors)
        if beside.is_file():
            if path.is_dir() or path.name in USUAL:
                found = _described(path, folder, library, beside, name)
                return dataclasses.replace(found, guessed=_joined(guessed, found.guessed))
            if renamed := _renamed(tensors, path, library, beside, name):
                return dataclasses.replace(renamed, guessed=_joined(guessed, renamed.guessed))
            guessed = _joined(guessed, f"{beside} is about another model than {path}: not used")
        if library == "open_clip" and not _is_siglip(tensors):
            library = "openai"
        if name is None:
            name = _recognised(tensors, library)
            guessed = _joined(
                guessed, f"no config is known of {path}: by its shapes it is taken for {name}"
            )
        config = architectures.find(name)
        _check_places(config, library, path, name)
        activation = activation or architectures.named_activation(name)
        if _is_clip(config):
            config = dataclasses.replace(config, activation=activation or config.activation)
            told = activation is not None or OPENAIS_OWN in tensors
            if config.activation == "quick_gelu" and not told:
                guessed = _joined(
                    guessed,
                    f"no config is known of {path} that says its activation: QuickGELU is taken, "
                    "as in OpenAI's models; open_clip's own, but for those called -quickgelu, need "
                    "activation=gelu",
                )
    if library == "open_clip" and config.activation == "gelu_tanh":
        config = dataclasses.replace(config, activation="gelu")  # as open_clip computes SigLIP
    return Found(path, library, config, preprocess_of(config), _usual_tokenizer(config), guessed)


def _check_places(config: CLIPConfig, library: Library, path: Path, name: str) -> None:
    try:
        leaves(config, library)
    except UserError:
        raise UserError(
            f"{path} does not hold {name}: its tensors are called as in a model of another kind"
        ) from None


def config_activation(model: CLIPConfig, name: str | None) -> str | None:
    """The activation that a run's config says of a lone file, as `find` takes it.

    None where it is the architecture's own: that is the default, of which nobody has to know.
    """
    own = name is not None and architectures.find(name).activation == model.activation
    return None if own else model.activation


def _is_clip(config: CLIPConfig) -> bool:
    """Whether it is a CLIP, of which files with either activation exist."""
    return config.activation in ("quick_gelu", "gelu") and isinstance(config.text, TextConfig)


def _joined(*lines: str) -> str:
    return "; ".join(line for line in lines if line)


def _left_out(tensors: ModelTensors) -> str:
    """A line about what a file holds besides the model."""
    lines = []
    if len(tensors.models) > 1:
        read, *others = (ascii(key[:80]) for key in tensors.models)
        lines.append(f"of {tensors.path} the model under {read} is read, not {', '.join(others)}")
    if names := tensors.left_out:
        lines.append(
            f"{len(names):,} tensors of {tensors.path} do not belong to the model and are left "
            f"out, such as {names[0]}"
        )
    return _joined(*lines)


def _renamed(
    tensors: Tensors, path: Path, library: Library, beside: Path, name: str | None
) -> Found | None:
    """What the config beside a file of any name says, where it describes just these tensors."""
    try:
        found = _described(path, path.parent, library, beside, name)
        shapes = dict(arrays.flat(*variables(abstract_model(found.config))))
        arrays.check(tensors, leaves(found.config, library), shapes)
    except UserError:
        return None
    return found


def _library(tensors: Tensors) -> Library:
    if any(name.startswith("vision_model.") for name in tensors):
        return "hugging_face"
    if any(name.startswith("visual.") for name in tensors):
        return "open_clip"
    raise UserError(
        f"{tensors.path} holds no CLIP: no tensor's name starts with visual. (OpenAI, open_clip) "
        "or vision_model. (transformers)"
    )


def _is_siglip(tensors: Tensors) -> bool:
    return any(name.startswith("visual.trunk.") for name in tensors)


def _described(path: Path, folder: Path, library: Library, beside: Path, name: str | None) -> Found:
    """What a config says that stands beside the weights."""
    values, guessed = files.read_json(beside), ""
    preprocess: Preprocess | None
    if library == "hugging_face":
        config = configs.from_hugging_face(values, str(beside))
        preprocess = _processor(folder)
    else:
        fields = configs.Fields(values, str(beside))
        config = configs.from_open_clip(fields.group("model_cfg").values, f"{beside}: model_cfg")
        pixels = fields.group("preprocess_cfg").values
        preprocess = None
        if pixels:
            preprocess = preprocessing.from_open_clip(pixels, config.vision.image_size, str(beside))
    if preprocess is None:
        preprocess = preprocess_of(config)
        where = f"{PREPROCESSOR} or {PROCESSOR} in {folder}"
        where = where if library == "hugging_face" else f"preprocess_cfg in {beside}"
        guessed = f"there is no {where}: pictures are prepared as such models usually are"
    if preprocess.size != config.vision.image_size:
        if not isinstance(config.vision, EfficientNetConfig):
            raise UserError(
                f"{PREPROCESSOR} or {PROCESSOR} in {folder} makes images of "
                f"{preprocess.size} pixels, "
                f"{beside} says {config.vision.image_size}"
            )
        # any size suits it, and it is the preprocessing that says which is meant
        vision = dataclasses.replace(config.vision, image_size=preprocess.size)
        config = dataclasses.replace(config, vision=vision)
    config = configs.with_normalization(config, preprocess.mean, preprocess.std)
    if name is not None:
        known = dataclasses.replace(architectures.find(name), activation=config.activation)
        _check_name(config, known, path, name)
    tokenizer = tokenizers.find(folder)
    return Found(path, library, config, preprocess, tokenizer, guessed)


def _processor(folder: Path) -> Preprocess | None:
    """What a folder of transformers' says of pictures; None where it says nothing.

    As there, an `image_processor` inside processor_config.json counts more than the other file;
    older ones say there only what the processor's class is called.
    """
    nested = folder / PROCESSOR
    if nested.is_file():
        values = files.read_json(nested)
        if values.get("image_processor") is not None:
            return preprocessing.from_hugging_face(values, str(nested))
    alone = folder / PREPROCESSOR
    if not alone.is_file():
        return None
    return preprocessing.from_hugging_face(files.read_json(alone), str(alone))


def _check_name(found: CLIPConfig, known: CLIPConfig, path: Path, name: str) -> None:
    shapes = [
        {key: leaf.shape for key, leaf in arrays.flat(variables(abstract_model(config))[0])}
        for config in (found, known)
    ]
    if shapes[0] != shapes[1]:
        key = next(k for k in (shapes[0] | shapes[1]) if shapes[0].get(k) != shapes[1].get(k))
        raise UserError(
            f"{path} does not hold {name}: its {key} is {shapes[0].get(key)}, not "
            f"{shapes[1].get(key)}"
        )


def _recognised(tensors: Tensors, library: Library) -> str:
    """The name of the architecture whose tensors these are."""
    named = {name for name in tensors if name not in IGNORED}
    for name, config in ARCHITECTURES.items():
        try:
            table = leaves(config, library)
            if named != {tensor for leaf in table for tensor in leaf.tensors}:
                continue  # which is seen in no time
            shapes = dict(arrays.flat(*variables(abstract_model(config))))
            arrays.check(tensors, table, shapes)
        except UserError:
            continue
        return name
    raise UserError(
        f"{tensors.path} has no config beside it and the shapes of no model that is known here: "
        f"put its {' or '.join(CONFIG.values())} beside it"
    )


def preprocess_of(config: CLIPConfig) -> Preprocess:
    """The preprocessing that a kind of model was published with.

    CLIP's cuts out the centre, SigLIP's squashes, ALIGN's does both.
    """
    vision = config.vision
    options: dict[str, Any] = dict(mean=vision.mean, std=vision.std)
    if isinstance(vision, EfficientNetConfig):
        side = round(vision.image_size * 346 / 289)
        return Preprocess(vision.image_size, "squash", side, "bilinear", **options)
    if isinstance(vision, VisionConfig) and vision.pool == "map":
        return Preprocess(vision.image_size, "squash", **options)
    return Preprocess(vision.image_size, **options)


def _usual_tokenizer(config: CLIPConfig) -> str | None:
    return "clip" if config.text.vocab_size == 49408 else None


def read(found: Found, dtype: str = "float32") -> Variables:
    """A model's parameters and batch statistics.

    Args:
      found: by `find`.
      dtype: of `arrays.DTYPES`: what the parameters are held in; `keep` as the file has them.

    Raises:
      UserError: a tensor is missing, superfluous, or of another shape; an unknown dtype.
    """
    with open_model(found.path) as tensors:
        return arrays.read(tensors, found.config, found.library, dtype_of(dtype))


def dtype_of(name: str) -> Any:
    """The NumPy dtype that parameters are held in, by its name in `arrays.DTYPES`; None: as read.

    Raises:
      UserError: there is none of that name.
    """
    if name not in arrays.DTYPES:
        raise UserError(f"unknown dtype {name!r}; known: {', '.join(arrays.DTYPES)}")
    return arrays.DTYPES[name]

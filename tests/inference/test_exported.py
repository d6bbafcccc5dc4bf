"""Models as StableHLO programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from weightfiles import found_in

import runs
from clip_jax.cli import export
from clip_jax.errors import UserError
from clip_jax.inference import exported, pretrained
from clip_jax.inference.programs import tower_program
from clip_jax.models.clip import CLIP, abstract_model
from clip_jax.models.model_config import CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from tools.golden_models import FAMILIES

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
WORDS = TextConfig(vocab_size=40, context_length=8, width=16, layers=2, heads=2)
VIT = CLIPConfig(
    12,
    logit_bias=-3.0,
    vision=VisionConfig(image_size=8, patch_size=4, width=16, layers=2, heads=2),
    text=WORDS,
)
RESNET = CLIPConfig(12, vision=ResNetConfig(64, 2, (1, 1, 1, 1), 2), text=WORDS)


def inputs(config: CLIPConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng, side = np.random.default_rng(count), config.vision.image_size
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return images, rng.integers(1, 40, (count, 8), dtype=np.int32)


@pytest.mark.parametrize("config", [VIT, pytest.param(RESNET, marks=pytest.mark.slow)])
def test_programs_give_the_models_features_for_any_batch(config: Any, tmp_path: Path) -> None:
    model = CLIP(config, rngs=nnx.Rngs(0))
    exported.export_model(model, tmp_path, normalized=True)
    programs = exported.load_exported(tmp_path)
    for count in (0, 1, 3):
        images, tokens = inputs(config, count)
        for ours, theirs in (
            (programs.encode_image(images), model.encode_image(images, normalized=True)),
            (programs.encode_text(tokens), model.encode_text(tokens, normalized=True)),
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert programs.logit_bias == config.logit_bias
    assert programs.logit_scale == pytest.approx(float(model.scale))


@pytest.mark.parametrize("family", [name for name in FAMILIES if "coca" not in name])
def test_every_family_takes_any_batch(family: str) -> None:
    """Traced with a symbolic number of rows; nothing is compiled."""
    weights = found_in(GOLDEN / family, family)
    model = abstract_model(weights.config)
    (rows,) = jax.export.symbolic_shape("batch")
    vision, text = weights.config.vision, weights.config.text
    shapes = (
        ((rows, *vision.input_shape), jnp.uint8, model.vision),
        ((rows, text.context_length), jnp.int32, model.text),
    )
    for shape, dtype, tower in shapes:
        own, run = tower_program(tower, "tower", True)
        given = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in own.items()}
        outcome = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))(
            given, jax.ShapeDtypeStruct(shape, dtype)
        )
        assert str(outcome.out_avals[0].shape) == f"(batch, {weights.config.embed_dim})"


def test_the_command_writes_what_another_process_runs(tmp_path: Path, capsys: Any) -> None:
    """Of the golden model of transformers, without a tokenizer; for one platform and batch."""
    source, folder = GOLDEN / "hugging_face_clip", tmp_path / "out"
    argv = [str(source), str(folder), "--platforms", "cpu", "--batch", "2", "--sides", "image"]
    assert export.run(argv) == 0
    assert "image.stablehlo" in capsys.readouterr().out
    manifest = json.loads((folder / "export.json").read_text())
    program = manifest["programs"]["image"]
    assert program["input"] == {"shape": ["2", "8", "8", "3"], "dtype": "uint8"}
    assert manifest["preprocess"]["size"] == 8 and "text" not in manifest["programs"]
    images, _ = inputs(VIT, 2)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np\n"
        "from clip_jax.inference.exported import load_exported\n"
        "model = load_exported(sys.argv[1])\n"
        "np.save(sys.argv[3], model.encode_image(np.load(sys.argv[2])))\n"
    )
    paths = [folder, tmp_path / "images.npy", tmp_path / "features.npy"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        env=runs.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    model, _, _ = pretrained.load(source)
    ours = np.load(tmp_path / "features.npy")
    np.testing.assert_allclose(ours, model.encode_image(images), atol=1e-6)
    with pytest.raises(UserError, match="--sides text"):
        exported.load_exported(folder).encode_text(np.zeros((2, 8), np.int32))
    with pytest.raises(UserError, match="--overwrite"):
        export.run(argv)
    assert export.run([*argv, "--overwrite", "--json"]) == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--sides", "audio"], "image, text"),
        (["--batch", "0"], "at least 1"),
        (["--platforms", "cpu,abacus"], "unknown platform 'abacus'"),
    ],
)
def test_wrong_flags_are_one_line(argv: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        export.run([str(GOLDEN / "hugging_face_clip"), str(tmp_path / "out"), *argv])
    assert not (tmp_path / "out").exists()


def test_a_folder_without_an_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"export\.json"):
        exported.load_exported(tmp_path)
    (tmp_path / "export.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="no manifest"):
        exported.load_exported(tmp_path)
    (tmp_path / "export.json").write_text('{"format": "jax.export"}')
    (tmp_path / "parameters.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        exported.load_exported(tmp_path)


def test_a_damaged_program_is_refused(tmp_path: Path) -> None:
    exported.export_model(CLIP(VIT, rngs=nnx.Rngs(0)), tmp_path, sides=["text"])
    (tmp_path / "text.stablehlo").write_bytes(b"no program")
    with pytest.raises(UserError, match=r"text\.stablehlo"):
        exported.load_exported(tmp_path)

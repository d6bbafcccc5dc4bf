"""A user's mapping of weights joins by its dotted path: no file of the package is touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import clip_jax
import runs
from clip_jax.cli import convert
from clip_jax.config import load
from clip_jax.inference.model_source import ModelSource
from clip_jax.training import setup
from clip_jax.training.run import saved_weights
from clip_jax.weights import arrays
from clip_jax.weights.configs import essence
from clip_jax.weights.library import find_weights, read_variables
from clip_jax.weights.tensors import open_tensors
from support import refused

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
NAME = "my_mappings:Dotted"
CODE = '''"""The files of a library that joins our names with dots."""
from clip_jax.data.images.preprocess import Preprocess
from clip_jax.io.files import read_json
from clip_jax.models.clip import abstract_model, variables
from clip_jax.models.model_config import CLIPConfig
from clip_jax.weights.arrays import flat
from clip_jax.weights.configs import essence
from clip_jax.weights.mappings.leaf import Leaf
from clip_jax.weights.mappings.protocol import ModelDescription, WeightsMapping


class Dotted(WeightsMapping):
    name = "dotted"
    description = "Dotted: a folder of dotted.safetensors and dotted.json"
    weights_file = "dotted.safetensors"
    config_file = "dotted.json"

    def leaves(self, config):
        for path, _ in flat(*variables(abstract_model(config))):
            yield Leaf(path, ("module.visual." + path.replace("/", "."),))

    def recognizes(self, names):
        return all(name.startswith("module.visual.") for name in names)

    def documents(self, config, preprocess):
        return {self.config_file: {"model": config.to_dict(), "resize": preprocess.resize}}

    def interpret(self, config, preprocess, documents):
        return essence(CLIPConfig.from_dict(documents[self.config_file]["model"]))

    def describe(self, config_file):
        values = read_json(config_file)
        config = CLIPConfig.from_dict(values["model"])
        vision = config.vision
        preprocess = Preprocess(
            vision.image_size, values["resize"], mean=vision.mean, std=vision.std
        )
        return ModelDescription(config, preprocess, str(config_file))
'''
WRONG = """from clip_jax.weights.mappings.protocol import WeightsMapping
class Nothing: name = 'nothing'
class Nameless(WeightsMapping): pass
function = len
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, from which Python imports."""
    assert len(CODE.splitlines()) <= 40
    (tmp_path / "my_mappings.py").write_text(CODE)
    (tmp_path / "wrong_mappings.py").write_text(WRONG)
    (tmp_path / "broken_mappings.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_mappings", "wrong_mappings"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def assert_equal_weights(one: Path, other: Path, other_library: str) -> None:
    """Checks that two folders hold the same model, bit for bit."""
    weights = find_weights(one), find_weights(other, library=other_library)
    assert essence(weights[0].config) == essence(weights[1].config)
    expected, actual = (dict(arrays.flat(*read_variables(w, "keep"))) for w in weights)
    assert expected.keys() == actual.keys()
    for path, array in expected.items():
        assert np.asarray(array).tobytes() == np.asarray(actual[path]).tobytes(), path


@pytest.mark.parametrize("family", ["open_clip_vit", "open_clip_resnet", "hugging_face_siglip"])
def test_a_model_is_written_and_read_back_equal(
    folder: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    assert convert.run([str(GOLDEN / family), str(out), "--to", NAME]) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"dotted.safetensors", "dotted.json"}
    with open_tensors(out) as tensors:
        assert "module.visual.logit_scale" in tensors
    assert_equal_weights(GOLDEN / family, out, NAME)


def test_load_and_convert_read_its_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, back = GOLDEN / "open_clip_vit", folder / "out", folder / "back"
    convert.run([str(source), str(out), "--to", NAME])
    model, preprocess, _ = clip_jax.load(str(out), library=NAME)
    expected, preprocess_before, _ = clip_jax.load(str(source))
    assert preprocess == preprocess_before
    images = np.zeros((1, preprocess.size, preprocess.size, 3), np.uint8)
    np.testing.assert_array_equal(model.encode_image(images), expected.encode_image(images))

    capsys.readouterr()
    assert convert.run([str(out), str(back), "--to", "open_clip", "--from", NAME]) == 0
    assert "(Dotted)" in capsys.readouterr().out, "the description is read for the message"
    original, copy = ((f / "open_clip_model.safetensors").read_bytes() for f in (source, back))
    assert original == copy
    assert_equal_weights(source, back, "open_clip")


def test_a_file_of_another_name_or_a_changed_one(folder: Path) -> None:
    source, out = GOLDEN / "open_clip_vit", folder / "out"
    file = folder / "alone" / "weights.safetensors"
    assert convert.run([str(source), str(file), "--to", NAME]) == 0
    assert_equal_weights(source, file, NAME)  # by the config beside it, which fits
    convert.run([str(source), str(out), "--to", NAME])
    document = json.loads((out / "dotted.json").read_text())
    document["model"]["text"]["width"] = 64
    (out / "dotted.json").write_text(json.dumps(document))
    refused(lambda: clip_jax.load(str(out), library=NAME), str(out), "module.visual.text")
    shutil.rmtree(out)
    refused(lambda: clip_jax.load(str(out), library=NAME), str(out), "does not exist")


@pytest.mark.parametrize("flag", ["--to", "--from"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_clop", ["no library has this name", "did you mean open_clip?", "hugging_face"]),
        ("timm", ["no library has this name", "openai", "my_package.my_module:MyClass"]),
        ("my_mappings:Doted", ["my_mappings has no Doted"]),
        ("no_such_module:Mine", ["cannot import no_such_module", "PYTHONPATH"]),
        ("broken_mappings:Mine", ["nothing_of_this_name"]),
        ("wrong_mappings:Nothing", ["no mapping of weights", "WeightsMapping"]),
        ("wrong_mappings:function", ["no mapping of weights", "WeightsMapping"]),
        ("wrong_mappings:Nameless", ["has no name, description, weights_file, config_file, doc"]),
    ],
)
def test_a_wrong_name_is_one_line(folder: Path, flag: str, name: str, words: list[str]) -> None:
    flags = ["--to", "open_clip", flag, name]
    source, out = str(GOLDEN / "open_clip_vit"), folder / "out"
    refused(lambda: convert.run([source, str(out), *flags]), f"{flag}={name}", *words)
    assert not out.exists()
    refused(lambda: clip_jax.load(source, library=name), f"library={name}", *words)


def test_a_run_starts_from_its_files(folder: Path) -> None:
    source, out = GOLDEN / "open_clip_vit", folder / "out"
    convert.run([str(source), str(out), "--to", NAME])
    model = find_weights(source).config
    start = [f"workdir={folder / 'run'}", f"weights.path={out}"]

    def weights(*overrides: str) -> ModelSource | None:
        c, _ = load("quickstart", [*start, *overrides])
        with c.unlocked():
            c.model = ConfigDict(model.to_dict())
        return saved_weights(*setup.checked(c)[:2])

    opened = weights(f"weights.library={NAME}")
    assert opened is not None and opened.library == "Dotted"
    expected = dict(arrays.flat(*read_variables(find_weights(source))))
    for path, array in arrays.flat(*opened.read("float32")):
        np.testing.assert_array_equal(array, expected[path])
    refused(weights, str(out))
    refused(lambda: weights("weights.library=my_mappings:Doted"), "config.weights.library")
    refused(lambda: weights(f"weights.library={NAME}", "weights.path="), "needs config.weights.p")


def test_a_library_is_not_named_for_a_run(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text("{}")
    flags = ["--to", "open_clip", "--from", NAME]
    refused(lambda: convert.run([str(folder / "run"), str(folder / "out"), *flags]), "is a run")
    refused(lambda: clip_jax.load(str(folder / "run"), library=NAME), "is a run")


def test_mappings_are_imported_when_they_are_used() -> None:
    code = (
        "import sys; from clip_jax.cli import convert; import clip_jax.weights.library; "
        "convert.parser().format_help(); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=runs.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    modules = done.stdout.split()
    assert "clip_jax.weights.param_mapping" in modules
    for name in ("openai", "open_clip", "hugging_face"):
        assert f"clip_jax.weights.mappings.{name}" not in modules


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("yield Leaf(path", "yield Leaf(1 / 0", ["leaves fails", "ZeroDivision"]),
        (
            '"resize": preprocess.resize',
            '"resize": preprocess.x',
            ["documents fails", "my_mappings.py"],
        ),
        ('documents[self.config_file]["model"]', 'documents["x"]', ["interpret fails", "'x'"]),
    ],
)
def test_a_mapping_that_fails_is_one_line(
    folder: Path, old: str, new: str, words: list[str]
) -> None:
    assert old in CODE
    (folder / "my_mappings.py").write_text(CODE.replace(old, new))
    source, out = str(GOLDEN / "open_clip_vit"), folder / "out"
    refused(lambda: convert.run([source, str(out), "--to", NAME]), NAME, *words)
    assert not out.exists()

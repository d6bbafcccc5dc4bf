"""The notebooks: run from top to bottom, and committed without what that gives."""

import ast
import os
import subprocess
import sys

import pytest

import runs

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

EXAMPLES = sorted((runs.ROOT / "examples").glob("*.ipynb"))


def outputs(notebook, kind):
    """What the cells gave of a MIME type, in order."""
    cell_outputs = (out for cell in notebook.cells for out in cell.get("outputs", []))
    return [out["data"][kind] for out in cell_outputs if kind in out.get("data", {})]


def execute(name, folder, monkeypatch, **environment):
    """A notebook run on one CPU in an empty folder."""
    for key, value in (
        runs.environment(XLA_FLAGS="", **environment) | {"JAX_PLATFORMS": "cpu"}
    ).items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(runs.ROOT / "examples" / name, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_notebooks_are_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            assert before is not None and before.cell_type == "markdown", "a cell says nothing"


def first_cell(path, folder, environment=()):
    """The first code cell of a notebook, run as a script in a folder."""
    notebook = nbformat.read(path, as_version=4)
    source = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", source],
        cwd=folder,
        env=clean | dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_clone_beside_the_notebook_does_not_hide_the_package(path, tmp_path):
    (tmp_path / "clip_jax").symlink_to(runs.ROOT)
    ran = first_cell(path, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] == "clip_jax" and ran.stdout.endswith("/clip_jax\n")


def test_a_folder_of_the_same_name_does_not_hide_the_installed_package(tmp_path):
    (tmp_path / "clip_jax").mkdir()
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    code = "import clip_jax; print(clip_jax.__file__, clip_jax.load)"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True
    )
    assert ran.returncode == 0 and "__init__.py" in ran.stdout, ran.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_missing_package_asks_for_the_repository(path, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\n"
        "def version(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
    )
    ran = first_cell(path, tmp_path, {"PYTHONPATH": str(tmp_path)})
    assert ran.returncode == 1
    assert ran.stderr == "set SOURCE to the address of this notebook's repository\n"


def test_colab_trains_and_classifies(tmp_path, monkeypatch):
    ran = execute("colab.ipynb", tmp_path, monkeypatch, STEPS="8")
    lines = runs.lines(tmp_path / "runs" / "colab")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    figures = outputs(ran, "image/png")
    assert len(figures) == 4  # the loss, the drawings, the bars, the similarities
    answer = ast.literal_eval(outputs(ran, "text/plain")[-1])
    assert {item["label"] for item in answer} == {"pizza", "cat face", "red heart"}
    assert sum(item["score"] for item in answer) == pytest.approx(1, abs=1e-5)


def test_weights_of_another_library(tmp_path, monkeypatch):
    monkeypatch.delenv("WEIGHTS", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ran = execute("weights.ipynb", tmp_path, monkeypatch)
    printed = [o.text for c in ran.cells for o in c.get("outputs", []) if o.get("name") == "stdout"]
    assert any("random numbers" in text for text in printed)
    shown = outputs(ran, "text/plain")[-4:]
    shares, answer, files, difference = map(ast.literal_eval, shown)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert {item["label"]: item["score"] for item in answer} == pytest.approx(shares, abs=1e-4)
    assert files == ["open_clip_config.json", "open_clip_model.safetensors"]
    assert difference < 1e-4 and len(outputs(ran, "image/png")) == 1

"""The notebooks: run from top to bottom, and committed without what that gives."""

import ast

import pytest

import runs

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

EXAMPLES = sorted((runs.ROOT / "examples").glob("*.ipynb"))


def outputs(notebook, kind):
    """What the cells gave of a MIME type, in order."""
    given = (out for cell in notebook.cells for out in cell.get("outputs", []))
    return [out["data"][kind] for out in given if kind in out.get("data", {})]


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

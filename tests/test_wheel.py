"""The wheel, installed in another environment and used from another folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import runs
from support import QUICK

pytestmark = pytest.mark.slow
pytest.importorskip("setuptools", "77")

SHIPPED = ("clip_jax", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
NO_FILES = shutil.ignore_patterns("__pycache__", "*.egg-info")
QUICKSTART = ("--config", "quickstart", "--config.optimizer.warmup_steps=1")


@dataclass(frozen=True)
class Installed:
    """A virtual environment that holds the wheel, and an empty folder to work in."""

    scripts: Path
    folder: Path

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment, such as `clip-jax`; the checkout is not on the path."""
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        env |= {"XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu"}
        return subprocess.run(
            [str(self.scripts / argv[0]), *argv[1:]],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def output(self, *argv: str) -> str:
        """What a command prints; it must succeed."""
        result = self.run(*argv)
        assert result.returncode == 0, f"{argv}: {result.stdout}{result.stderr}"
        return result.stdout


def pip(*argv: str) -> None:
    """Runs pip without the network."""
    command = [sys.executable, "-m", "pip", *argv, "--no-deps", "--no-index", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout without earlier builds."""
    source = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        path = runs.ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=NO_FILES)
        else:
            shutil.copy(path, source)
    pip("wheel", str(source), "--no-build-isolation", "--wheel-dir", str(source / "dist"))
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a new environment, which borrows the dependencies of this one.

    The packages of this environment are appended to the path. Its own .pth files are not read
    there, so an editable install of clip_jax in it has no effect.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = folder / "venv"
    create = [sys.executable, "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(create, check=True, timeout=120)
    scripts = environment / "bin"
    pip("--python", str(scripts / "python"), "install", str(wheel))
    (site,) = environment.glob("lib/python*/site-packages")
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    (folder / "work").mkdir()
    return Installed(scripts, folder / "work")


def train(installed: Installed, *flags: str) -> Path:
    """Runs a short quickstart; returns its folder."""
    installed.output("clip-jax", "train", *QUICKSTART, "--config.evaluate.every=4", *flags)
    return installed.folder / "runs" / "quickstart"


@pytest.fixture(scope="module")
def run(installed: Installed) -> Path:
    """A quickstart of four steps."""
    return train(installed, "--config.steps=4", "--config.checkpoint.every=2")


@pytest.fixture(scope="module")
def picture(installed: Installed) -> Path:
    """A picture file."""
    from PIL import Image

    path = installed.folder / "red.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


def files_of(package: Path) -> set[str]:
    """The files of a package, relative to it."""
    files = (path for path in package.rglob("*") if path.is_file())
    return {str(p.relative_to(package)) for p in files if "__pycache__" not in p.parts}


def test_the_wheel_holds_every_file_of_the_package_and_the_configs(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"clip_jax/{name}" for name in files_of(runs.ROOT / "clip_jax")}
    expected |= {f"clip_jax/configs/{name}" for name in files_of(runs.ROOT / "configs")}
    assert names == expected


def test_the_metadata_name_version_licence_and_hardware(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
        licences = [n.rpartition("/")[2] for n in archive.namelist() if "/licenses/" in n]
    version = (runs.ROOT / "clip_jax" / "version.py").read_text()
    assert f'"{re.search(r"^Version: (.+)$", metadata, re.M)[1]}"' in version
    assert sorted(licences) == ["LICENSE", "NOTICE"]
    hardware = {"tpu": "tpu", "cuda12": "cuda12", "cuda13": "cuda13", "cuda": "cuda13"}
    for extra, of_jax in hardware.items():
        assert f'Requires-Dist: jax[{of_jax}]; extra == "{extra}"' in metadata


def test_the_package_comes_from_the_wheel(installed):
    code = "import clip_jax, sys; print(clip_jax.__file__); print(*sys.path, sep='\\n')"
    place, *path = installed.output("python", "-c", code).split("\n")
    assert place.startswith(str(installed.scripts.parent))
    assert str(runs.ROOT) not in path
    assert installed.run("python", "-c", "import configs").returncode == 1


def test_the_quickstart_trains_by_its_name(run):
    lines = runs.lines(run)
    assert [line["step"] for line in lines if "loss" in line][-1] == 4
    assert any("zero_shot/unseen_drawing/top1" in line for line in lines)
    assert (run / "report.html").is_file()


def test_a_run_resumes_with_new_keys_and_new_values(installed, run, tmp_path):
    """A run of a version that lacks a key takes the key's default."""
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["data"]["separator"], config["loss"]["mask_duplicates"]
    path.write_text(json.dumps(config))
    flags = (f"--workdir={tmp_path / 'run'}", "--config.steps=4", "--config.log.every=1")
    result = installed.run("clip-jax", "train", *QUICKSTART, "--config.evaluate.every=4", *flags)
    assert result.returncode == 0 and "nothing to train" in result.stderr, result.stderr
    other = installed.run("clip-jax", "train", *QUICKSTART, *flags, "--config.seed=1")
    assert other.returncode == 2 and "seed" in other.stderr, other.stderr


def test_a_config_of_ones_own_starts_from_a_shipped_one(installed):
    (installed.folder / "mine.py").write_text(
        "import importlib.util\n"
        "from configs import quickstart\n\n"
        "assert not importlib.util.find_spec('inference'), 'a package of clip_jax'\n"
        "def get_config():\n"
        "    c = quickstart.get_config()\n"
        "    c.seed = 7\n"
        "    return c\n"
    )
    help_text = installed.output("clip-jax", "train", "--config", "mine.py", "--help")
    assert "config.seed=7" in help_text


def commands(installed: Installed) -> Sequence[str]:
    """The names of all commands."""
    code = "from clip_jax.__main__ import COMMANDS; print(*COMMANDS)"
    return installed.output("python", "-c", code).split()


def test_every_command_explains_itself(installed):
    assert {"train", "evaluate", "plan", "classify", "convert"} <= set(commands(installed))
    for name in commands(installed):
        assert "usage:" in installed.output("clip-jax", name, "--help")
    assert "usage:" in installed.output("python", "-m", "clip_jax.main", "--help")


def test_evaluate(installed, run):
    flags = ("--checkpoint", str(run), "--sets=unseen_concept")
    out = installed.output("clip-jax", "evaluate", *QUICKSTART, *flags)
    assert 0 <= json.loads(out.splitlines()[-1])["zero_shot/unseen_concept/top1"] <= 1


def test_classify(installed, run, picture):
    flags = ("--checkpoint", str(run), str(picture), "--labels", "apple,sun")
    out = installed.output("clip-jax", "classify", *flags)
    assert "apple" in out and "sun" in out


def test_convert_and_load(installed):
    flags = (*QUICKSTART, "--config.steps=2", "--workdir=plain", "--config.evaluate.sets={}")
    plain = ("--config.model.vision.stem=0", "--config.model.vision.pool=class")
    text = ("--config.model.text.layers=1", "--config.model.text.heads=3")
    installed.output("clip-jax", "train", *flags, *plain, *text)
    installed.output("clip-jax", "convert", "plain", "converted", "--to", "open_clip")
    code = "import clip_jax; print(clip_jax.load('converted')[0].encode_text.__name__)"
    assert "encode_text" in installed.output("python", "-c", code)


def test_inspect(installed):
    out = installed.output("clip-jax", "inspect", "quickstart", "--pairs=50", "--seconds=0")
    assert "9,094" in out


def test_plan(installed):
    flags = ("--config", "quickstart", "--topology=cpu:2", "--json")
    out = installed.output("clip-jax", "plan", *flags)
    assert json.loads(out.splitlines()[-1])["fits"] is True

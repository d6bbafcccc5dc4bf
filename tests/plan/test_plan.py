"""Tests `--mode=plan` from config to report: estimates, proposals, sweeps, user errors."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import pytest

import clip_jax
import runs
from clip_jax import main
from clip_jax.distributed import hardware
from clip_jax.errors import UserError
from clip_jax.plan import compiling, cost, loops, search
from clip_jax.plan.result import PARTS, Estimate
from clip_jax.training import flops
from clip_jax.training.run import Run
from clip_jax.training.trainer import Trainer

KEYS = {
    *("fits", "hbm_bytes", "hbm", "hbm_capacity_bytes", "estimated_seconds"),
    *("interconnect_seconds", "model_flops", "collectives", "images_per_second_per_chip", "mfu"),
    *("days", "chip_hours", "kernels", "proposals", "compile_seconds"),
    *("product_flops", "time_unknown"),
}

CONFIG = '''"""A tiny model."""
from configs import common

def get_config():
    c = common.get_config()
    c.batch_size = 16
    c.steps = 3000
    c.model.embed_dim = 16
    c.model.vision.update(image_size=16, patch_size=4, width=32, layers=2, heads=4)
    c.model.text.update(vocab_size=56, context_length=8, width=32, layers=2, heads=4)
    return c
'''


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def config(path):
    from clip_jax import config as config_lib

    return config_lib.load(str(path))[0]


def run_plan(path, topology, *flags, capsys):
    """The printed report and the JSON of its last line."""
    argv = ["--config", str(path), "--mode=plan", f"--topology={topology}", "--json", *flags]
    assert main.run(argv) == 0
    *report, last = capsys.readouterr().out.splitlines()
    return "\n".join(report), json.loads(last)


@pytest.mark.slow
def test_the_plan_of_a_step_for_a_slice(path, config, capsys):
    pytest.importorskip("libtpu")
    report, result = run_plan(path, "v5e:2x2", "--config.mesh.fsdp=4", capsys=capsys)
    assert result.keys() >= KEYS
    assert result["fits"] is True and result["proposals"] == []
    assert result["hbm"].keys() == set(PARTS) and min(result["hbm"].values()) > 0
    assert sum(result["hbm"].values()) == result["hbm_bytes"] < result["hbm_capacity_bytes"]
    recipe, _ = cost.make_recipe(config, "v5e:2x2")
    assert result["model_flops"] == flops.step(recipe.architecture, recipe.objective, 16)
    seconds = max(result["estimated_seconds"], result["interconnect_seconds"])
    assert result["estimated_seconds"] > 0 and result["interconnect_seconds"] > 0
    assert result["images_per_second_per_chip"] == pytest.approx(16 / seconds / 4)
    peak = hardware.chip_named("v5e").peak
    assert result["mfu"] == pytest.approx(result["model_flops"] / seconds / peak / 4)
    assert result["chip_hours"] == pytest.approx(3000 * seconds * 4 / 3600)
    assert result["days"] == pytest.approx(3000 * seconds / 86400)
    kinds = {c["kind"] for c in result["collectives"]}
    assert kinds & {"all-gather", "all-reduce"}
    total_bytes = sum(c["bytes"] * c["executions"] for c in result["collectives"])
    assert total_bytes / 1.8e11 <= result["interconnect_seconds"]
    for word in ("ompiler-estimated, not run", "activations", "88-90 %", "chip-hours"):
        assert word in report


@pytest.mark.slow
def test_a_step_with_misread_loops_has_no_time(path, capsys, monkeypatch):
    """This happens if the compiler changes its output: a part of the products gives no speed."""
    pytest.importorskip("libtpu")
    monkeypatch.setattr(loops.Loop, "trip_count", lambda self: 1)
    deep = ["--config.model.text.layers=8", "--config.model.vision.layers=8"]
    report, result = run_plan(path, "v5e:1x1", *deep, capsys=capsys)
    assert "TIME UNKNOWN" in report and "% of the model's FLOPs" in report
    assert (
        "MFU" not in report.partition("Compiler-estimated")[0] and " ms per step, c" not in report
    )
    unknown_keys = ("estimated_seconds", "step_seconds", "images_per_second_per_chip", "mfu")
    assert [result[key] for key in (*unknown_keys, "days", "chip_hours")] == [None] * 6
    assert result["fits"] and result["product_flops"] < 0.65 * result["model_flops"]


def test_implausible_times_have_a_reason():
    assert "at the chip's peak" in cost._implausible(0.9, 1.0, 1.3, 0.7)
    assert "0 % of the model's FLOPs" in cost._implausible(1.1, 1.0, 0.0, 0.7)
    assert cost._implausible(1.1, 1.0, 0.9, 0.7) == ""


def test_the_plan_for_cpus_has_all_keys_and_no_time(path, tmp_path, capsys, monkeypatch):
    """The output of the compiler is kept in the folder of --dump, and nowhere else."""
    monkeypatch.setattr(compiling.tempfile, "tempdir", str(tmp_path))
    layers = ["--config.model.text.layers=1", "--config.model.vision.layers=1"]
    report, result = run_plan(path, "cpu:2", *layers, f"--dump={tmp_path / 'dump'}", capsys=capsys)
    assert result.keys() >= KEYS and result["fits"] is True
    assert sum(result["hbm"].values()) == result["hbm_bytes"]
    assert result["estimated_seconds"] is result["mfu"] is result["days"] is None
    assert any(c["kind"] == "all-reduce" for c in result["collectives"])
    assert "estimates no time" in report.replace("\n", " ")
    assert list((tmp_path / "dump").glob("*after_optimizations*.txt"))
    assert {file.name for file in tmp_path.iterdir()} == {"tiny.py", "dump"}


def test_the_plan_lowers_the_step_that_trains(config):
    """The lowered program equals that of `Trainer`."""
    mesh = cost.sharding.make_mesh(config.mesh.to_dict())
    typed_config, architecture, objective = cost.setup.checked(config, jax.device_count())
    run = Run(typed_config, architecture, objective, None, None, None, None)
    trainer_program = Trainer(run).lower(8).as_text()
    assert mesh.size == jax.device_count() == 8
    assert clip_jax.plan.lower(config, "cpu:8").as_text() == trainer_program


def test_twice_the_batch_size_doubles_only_the_memory_of_the_batch(config):
    nothing = compiling.CompileResult(None, 10**9, None)
    small, large = (
        cost._memory_parts(nothing, cost.make_recipe(c, "cpu:4")[0])
        for c in (config, search.with_overrides(config, {"batch_size": 32}))
    )
    assert large["batch"] == 2 * small["batch"]
    assert large["parameters"] == small["parameters"]
    assert sum(small.values()) == sum(large.values()) == 10**9


def test_importing_the_package_does_not_import_jax():
    code = "import sys, clip_jax; clip_jax.plan.lower; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=runs.environment(), check=True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["--topology", "v5e:16x16"]),
        (["--topology=v5e:axb"], ["v5e:axb", "v5e:16x16"]),
        (["--topology=cpu:3"], ["config.batch_size=16", "3 devices", "such as"]),
        (["--topology=cpu:4", "--config.accumulate=3"], ["config.accumulate=3", "4 devices"]),
        (["--topology=cpu:4", "--config.mesh.fsdp=3"], ["config.mesh", "4 devices"]),
        (["--topology=cpu:4", "--config.remat=some"], ["remat", "full"]),
        (["--topology=cpu:4", "--sweep", "accumulate"], ["--sweep", "config.accumulate=1,4,16"]),
        (["--topology=cpu:4", "--sweep", "accumulates=1,2"], ["config.accumulate"]),
        (["--topology=cpu:4", "--sweep", "accumulate=1,x"], ["config.accumulate=x"]),
        (["--topology=cpu:4", "--sweep", "--dump=x"], ["--dump", "--sweep"]),
    ],
)
def test_mistakes_are_one_line_errors_before_compiling(path, flags, words, capsys):
    with pytest.raises(UserError) as error:
        main.run(["--config", str(path), "--mode=plan", *flags])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert "fits" not in capsys.readouterr().err


def test_flags_of_a_plan_need_its_mode(path):
    with pytest.raises(UserError, match="--mode=plan"):
        main.run(["--config", str(path), "--topology=v5e:2x2"])


def test_a_sweep_is_a_table_with_the_fastest_first(path, capsys, monkeypatch):
    """The estimates are fakes; the choices that are compiled and the output are real."""
    calls = []

    def fake_estimate_step(c, topology, dump=None, overrides=None):
        calls.append((c.accumulate, c.remat))
        fits = c.remat == "full"
        return make_estimate(overrides, fits, seconds=c.accumulate / (1 + fits) if fits else None)

    monkeypatch.setattr(search, "estimate_step", fake_estimate_step)
    axes = ["--sweep", "config.accumulate=4,1,3", "remat=none,full", "chunk.image=-1,0"]
    report, result = run_plan(path, "cpu:4", *axes, capsys=capsys)
    assert calls == [(4, "none"), (4, "full"), (1, "none"), (1, "full")]
    rows = [(row["overrides"]["accumulate"], row["overrides"]["remat"]) for row in result["sweep"]]
    assert rows[:2] == [(1, "full"), (4, "full")]
    assert set(rows[2:4]) == {(1, "none"), (4, "none")}
    assert all("does not divide" in row["error"] for row in result["sweep"][4:])
    assert {row["fits"] for row in result["sweep"][4:]} == {False}
    assert "does not fit" in report and "accumulate" in report


def make_estimate(overrides, fits, seconds=None, size=1 << 30) -> Estimate:
    return Estimate(
        *("v5e:2x2", overrides or {}, 4, 4, fits, size, dict.fromkeys(PARTS, size // 4), 1 << 34),
        *(seconds, 0.0, 10**15, [], None, None, {}, [], 10**15, "", 16, (0, 0), 100, 197e12, 1.0),
    )


def test_proposals_are_cumulative_changes_until_enough_fit(config, monkeypatch):
    """The estimates are fakes: four parts of the batch fit, and so does a quarter of the batch."""
    calls = []

    def fake_estimate_step(c, topology, dump=None, overrides=None):
        calls.append(dict(overrides))
        parts = c.accumulate * (64 // c.batch_size)
        return make_estimate(overrides, fits=parts >= 4, size=(1 << 36) // parts)

    monkeypatch.setattr(search, "estimate_step", fake_estimate_step)
    config = search.with_overrides(config, {"batch_size": 64, "remat": "dots"})
    failed = fake_estimate_step(config, "cpu:4", overrides={})
    proposals = search.propose(config, "cpu:4", failed, lambda line: None)
    sharded = {"mesh.data": 1, "mesh.fsdp": 4}
    full = {**sharded, "remat": "full"}
    assert calls[1:3] == [sharded, full]
    assert [e.overrides for e in proposals] == [
        {**full, "accumulate": 4},
        {**full, "batch_size": 16},
    ]
    assert search.override_flags(sharded) == "--config.mesh.data=1 --config.mesh.fsdp=4"


@pytest.mark.parametrize(("excess", "remat"), [(1.5, "full:2"), (3, "full:4")])
def test_saving_the_inputs_of_fewer_layers_comes_before_splitting_the_batch(
    config, monkeypatch, excess, remat
):
    def fake_estimate_step(c, topology, dump=None, overrides=None):
        size = excess * (1 << 34) / int(c.remat.partition(":")[2] or 1)
        return make_estimate(overrides, fits=size <= 1 << 34, size=int(size))

    monkeypatch.setattr(search, "estimate_step", fake_estimate_step)
    failed = fake_estimate_step(config, "cpu:4", overrides={})
    (proposal,) = search.propose(config, "cpu:4", failed, lambda line: None)
    assert proposal.overrides["remat"] == remat


def test_there_are_no_proposals_if_nothing_fits(config, monkeypatch):
    def fake_estimate_step(c, topology, dump=None, overrides=None):
        return make_estimate(overrides, fits=False, size=1 << 40)

    monkeypatch.setattr(search, "estimate_step", fake_estimate_step)
    failed = fake_estimate_step(config, "cpu:4")
    assert search.propose(config, "cpu:4", failed, lambda line: None) == []


@pytest.mark.slow
def test_a_step_that_does_not_fit_has_a_proposal_that_does(path, capsys):
    pytest.importorskip("libtpu")
    embedding = ["--config.model.text.vocab_size=1600000", "--config.model.text.width=1024"]
    layers = ["--config.model.text.layers=1", "--config.model.vision.layers=1"]
    report, result = run_plan(path, "v5e:2x2", *embedding, *layers, capsys=capsys)
    assert result["fits"] is False and result.keys() >= KEYS
    assert result["hbm_bytes"] > result["hbm_capacity_bytes"] == int(15.75 * 2**30)
    assert sum(result["hbm"].values()) == result["hbm_bytes"]
    assert result["estimated_seconds"] is result["collectives"] is result["mfu"] is None
    (fitting,) = result["proposals"]
    assert fitting["fits"] and fitting["overrides"] == {"mesh.data": 1, "mesh.fsdp": 4}
    assert fitting["hbm"]["parameters"] == pytest.approx(1.6e6 * 1024, rel=0.02)
    assert "DOES NOT FIT" in report
    assert "--config.mesh.data=1 --config.mesh.fsdp=4" in report

"""`--mode=plan` from config to report: what a step takes, what would fit, what is refused."""

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
from clip_jax.plan import cost, search
from clip_jax.plan.cost import PARTS, Estimate
from clip_jax.training import flops
from clip_jax.training.run import Run
from clip_jax.training.trainer import Trainer

KEYS = {
    *("fits", "hbm_bytes", "hbm", "hbm_capacity_bytes", "estimated_seconds"),
    *("interconnect_seconds", "model_flops", "collectives", "images_per_second_per_chip", "mfu"),
    *("days", "chip_hours", "kernels", "proposals", "compile_seconds"),
    *("product_flops", "time_unknown"),
}

CONFIG = '''"""A model of a moment."""
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


def planned(path, topology, *flags, capsys):
    """The printed report and the JSON of its last line."""
    argv = ["--config", str(path), "--mode=plan", f"--topology={topology}", "--json", *flags]
    assert main.run(argv) == 0
    *report, last = capsys.readouterr().out.splitlines()
    return "\n".join(report), json.loads(last)


def test_a_step_for_a_slice(path, config, capsys):
    pytest.importorskip("libtpu")
    report, found = planned(path, "v5e:2x2", "--config.mesh.fsdp=4", capsys=capsys)
    assert found.keys() >= KEYS
    assert found["fits"] is True and found["proposals"] == []
    assert found["hbm"].keys() == set(PARTS) and min(found["hbm"].values()) > 0
    assert sum(found["hbm"].values()) == found["hbm_bytes"] < found["hbm_capacity_bytes"]
    made, _ = cost.recipe_of(config, "v5e:2x2")
    assert found["model_flops"] == flops.step(made.architecture, made.objective, 16)
    seconds = max(found["estimated_seconds"], found["interconnect_seconds"])
    assert found["estimated_seconds"] > 0 and found["interconnect_seconds"] > 0
    assert found["images_per_second_per_chip"] == pytest.approx(16 / seconds / 4)
    peak = hardware.chip_named("v5e").peak
    assert found["mfu"] == pytest.approx(found["model_flops"] / seconds / peak / 4)
    assert found["chip_hours"] == pytest.approx(3000 * seconds * 4 / 3600)
    assert found["days"] == pytest.approx(3000 * seconds / 86400)
    kinds = {c["kind"] for c in found["collectives"]}
    assert kinds & {"all-gather", "all-reduce"}
    sent = sum(c["bytes"] * c["executions"] for c in found["collectives"])
    assert sent / 1.8e11 <= found["interconnect_seconds"]
    for word in ("ompiler-estimated, not run", "activations", "88-90 %", "chip-hours"):
        assert word in report


def test_a_step_whose_loops_are_misread_has_no_time(path, capsys, monkeypatch):
    """As where the compiler's text changes: no speed may be made of a part of the products."""
    pytest.importorskip("libtpu")
    monkeypatch.setattr(cost.program.loops.Loop, "rounds", lambda self: 1)
    deep = ["--config.model.text.layers=8", "--config.model.vision.layers=8"]
    report, found = planned(path, "v5e:1x1", *deep, capsys=capsys)
    assert "TIME UNKNOWN" in report and "% of the model's FLOPs" in report
    assert "MFU" not in report.partition("Compiler-estimated")[0] and " ms a step, c" not in report
    unknown = ("estimated_seconds", "step_seconds", "images_per_second_per_chip", "mfu")
    assert [found[key] for key in (*unknown, "days", "chip_hours")] == [None] * 6
    assert found["fits"] and found["product_flops"] < 0.65 * found["model_flops"]


def test_a_step_above_the_peak_has_no_time():
    assert "at the chip's peak" in cost._implausible(0.9, 1.0, 1.3, 0.7)
    assert "0 % of the model's FLOPs" in cost._implausible(1.1, 1.0, 0.0, 0.7)
    assert cost._implausible(1.1, 1.0, 0.9, 0.7) == ""


def test_a_step_for_cpus_has_no_time_but_all_keys(path, tmp_path, capsys, monkeypatch):
    """What the compiler wrote is kept where that is asked, and nowhere else."""
    monkeypatch.setattr(cost.tempfile, "tempdir", str(tmp_path))
    layers = ["--config.model.text.layers=1", "--config.model.vision.layers=1"]
    report, found = planned(path, "cpu:2", *layers, f"--dump={tmp_path / 'kept'}", capsys=capsys)
    assert found.keys() >= KEYS and found["fits"] is True
    assert sum(found["hbm"].values()) == found["hbm_bytes"]
    assert found["estimated_seconds"] is found["mfu"] is found["days"] is None
    assert any(c["kind"] == "all-reduce" for c in found["collectives"])
    assert "estimates no time" in report.replace("\n", " ")
    assert list((tmp_path / "kept").glob("*after_optimizations*.txt"))
    assert {file.name for file in tmp_path.iterdir()} == {"tiny.py", "kept"}


def test_the_plan_lowers_the_step_that_trains(config):
    """The program that `Trainer` compiles, letter for letter."""
    mesh = cost.sharding.make_mesh(config.mesh.to_dict())
    typed, architecture, objective = cost.setup.checked(config, jax.device_count())
    run = Run(typed, architecture, objective, None, None, None, None)
    trained = Trainer(run).lower(8).as_text()
    assert mesh.size == jax.device_count() == 8
    assert clip_jax.plan.lower(config, "cpu:8").as_text() == trained


def test_twice_the_rows_are_twice_the_batch_and_no_more_parameters(config):
    small, large = (
        cost._memory(cost.Compiled(None, 10**9, None), cost.recipe_of(c, "cpu:4")[0])
        for c in (config, search.changed(config, {"batch_size": 32}))
    )
    assert large["batch"] == 2 * small["batch"]
    assert large["parameters"] == small["parameters"]
    assert sum(small.values()) == sum(large.values()) == 10**9


def test_nothing_heavy_is_imported_before_a_plan_is_asked():
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
def test_what_is_wrong_is_one_line_before_any_compiling(path, flags, words, capsys):
    with pytest.raises(UserError) as error:
        main.run(["--config", str(path), "--mode=plan", *flags])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert "fits" not in capsys.readouterr().err


def test_a_plans_flags_are_refused_elsewhere(path):
    with pytest.raises(UserError, match="--mode=plan"):
        main.run(["--config", str(path), "--topology=v5e:2x2"])


def test_a_sweep_is_a_table_the_fastest_first(path, capsys, monkeypatch):
    """Numbers are pretended; which choices are compiled, and how they are told, is not."""
    asked = []

    def pretended(c, topology, dump=None, overrides=None):
        asked.append((c.accumulate, c.remat))
        fits = c.remat == "full"
        return estimate(overrides, fits=fits, seconds=c.accumulate / (1 + fits) if fits else None)

    monkeypatch.setattr(search, "estimated", pretended)
    axes = ["--sweep", "config.accumulate=4,1,3", "remat=none,full", "chunk.image=-1,0"]
    report, found = planned(path, "cpu:4", *axes, capsys=capsys)
    assert asked == [(4, "none"), (4, "full"), (1, "none"), (1, "full")]
    rows = [(row["overrides"]["accumulate"], row["overrides"]["remat"]) for row in found["sweep"]]
    assert rows[:2] == [(1, "full"), (4, "full")]
    assert set(rows[2:4]) == {(1, "none"), (4, "none")}
    assert all("does not divide" in row["error"] for row in found["sweep"][4:])
    assert {row["fits"] for row in found["sweep"][4:]} == {False}
    assert "does not fit" in report and "accumulate" in report


def estimate(overrides, fits, seconds=None, size=1 << 30) -> Estimate:
    return Estimate(
        *("v5e:2x2", overrides or {}, 4, 4, fits, size, dict.fromkeys(PARTS, size // 4), 1 << 34),
        *(seconds, 0.0, 10**15, [], {}, [], 10**15, "", 16, (0, 0), 100, 197e12, 1.0),
    )


def test_proposals_change_one_thing_after_another_until_enough_fit(config, monkeypatch):
    """What fits is pretended: parts of a quarter, or a quarter of the batch."""
    asked = []

    def pretended(c, topology, dump=None, overrides=None):
        asked.append(dict(overrides))
        parts = c.accumulate * (64 // c.batch_size)
        return estimate(overrides, fits=parts >= 4, size=(1 << 36) // parts)

    monkeypatch.setattr(search, "estimated", pretended)
    config = search.changed(config, {"batch_size": 64, "remat": "dots"})
    failed = pretended(config, "cpu:4", overrides={})
    found = search.proposals(config, "cpu:4", failed, lambda line: None)
    spread = {"mesh.data": 1, "mesh.fsdp": 4}
    full = {**spread, "remat": "full"}
    assert asked[1:3] == [spread, full]
    assert [e.overrides for e in found] == [
        {**full, "accumulate": 4},
        {**full, "batch_size": 16},
    ]
    assert search.flags(spread) == "--config.mesh.data=1 --config.mesh.fsdp=4"


def test_nothing_is_proposed_where_nothing_fits(config, monkeypatch):
    def pretended(c, topology, dump=None, overrides=None):
        return estimate(overrides, fits=False, size=1 << 40)

    monkeypatch.setattr(search, "estimated", pretended)
    failed = pretended(config, "cpu:4")
    assert search.proposals(config, "cpu:4", failed, lambda line: None) == []


def test_a_step_that_does_not_fit_and_one_that_does(path, capsys):
    pytest.importorskip("libtpu")
    embedding = ["--config.model.text.vocab_size=1600000", "--config.model.text.width=1024"]
    layers = ["--config.model.text.layers=1", "--config.model.vision.layers=1"]
    report, found = planned(path, "v5e:2x2", *embedding, *layers, capsys=capsys)
    assert found["fits"] is False and found.keys() >= KEYS
    assert found["hbm_bytes"] > found["hbm_capacity_bytes"] == int(15.75 * 2**30)
    assert sum(found["hbm"].values()) == found["hbm_bytes"]
    assert found["estimated_seconds"] is found["collectives"] is found["mfu"] is None
    (fitting,) = found["proposals"]
    assert fitting["fits"] and fitting["overrides"] == {"mesh.data": 1, "mesh.fsdp": 4}
    assert fitting["hbm"]["parameters"] == pytest.approx(1.6e6 * 1024, rel=0.02)
    assert "DOES NOT FIT" in report
    assert "--config.mesh.data=1 --config.mesh.fsdp=4" in report

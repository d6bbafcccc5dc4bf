"""Configs: overrides keep their types, and every mistake is one line that names its key."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from clip_jax import config as config_lib
from clip_jax.config import ROOT, describe, differences, flatten, load, override, to_json
from clip_jax.config.checks import check, with_steps
from clip_jax.errors import UserError
from support import says

CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__",))
VIT_B16 = str(ROOT / "configs" / "vit_b16.py")


def example() -> ConfigDict:
    return ConfigDict(
        {
            "steps": 100,
            "rate": 0.5,
            "on": False,
            "name": "x",
            "pair": (0.9, 1.0),
            "texts": ("{caption}",),
            "none": None,
            "model": {"vision": {"width": 8}, "embed_dim": 4},
            "sets": {},
        }
    )


def set_to(item: str) -> Any:
    c = example()
    override(c, item)
    return dict(flatten(c))[item.partition("=")[0]]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("steps=7", 7),
        ("steps=-1", -1),
        ("steps=1_000", 1000),
        ("steps=1e3", 1000),
        ("rate=1e-3", 1e-3),
        ("rate=3", 3.0),
        ("rate=-.5", -0.5),
        ("on=true", True),
        ("on=True", True),
        ("on=FALSE", False),
        ("name=5", "5"),
        ("name=a=b", "a=b"),
        ("name=", ""),
        ("name=(1, 2)", "(1, 2)"),
        ("pair=(0.5, 1.0)", (0.5, 1.0)),
        ("pair=0.5,1", (0.5, 1.0)),
        ("pair=[0, 1]", (0.0, 1.0)),
        ("texts=a photo of {name}", ("a photo of {name}",)),
        ("texts={}", ("{}",)),
        ("texts={caption}, {n}", ("{caption}, {n}",)),
        ("texts=42", ("42",)),
        ("texts=('a', 'b {}')", ("a", "b {}")),
        ('texts=["a", "b"]', ("a", "b")),
        ("none=3", 3),
        ("none=word", "word"),
        ("model.vision.width=16", 16),
    ],
)
def test_values_take_the_type_of_the_default(item: str, expected: Any) -> None:
    config_value = set_to(item)
    assert config_value == expected
    assert type(config_value) is type(expected)
    if isinstance(expected, tuple):
        assert [type(v) for v in config_value] == [type(v) for v in expected]


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back_exactly(value: float) -> None:
    assert set_to(f"rate={value!r}") == float(value)
    if isinstance(value, int):
        assert set_to(f"steps={value}") == value


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("steps=1.5", ["config.steps=1.5", "a whole number", "100"]),
        ("steps=ten", ["config.steps=ten", "a whole number"]),
        ("steps=1e999", ["config.steps=1e999", "a whole number"]),
        ("steps=True", ["config.steps=True", "a whole number"]),
        ("steps=", ["config.steps=", "a whole number"]),
        ("rate=fast", ["config.rate=fast", "a number", "0.5"]),
        ("rate=True", ["config.rate=True"]),
        ("rate=1e999", ["config.rate=1e999"]),
        ("rate=nan", ["config.rate=nan"]),
        ("rate=1" + "0" * 400, ["config.rate=1"]),
        ("rate=" + "(" * 300, ["config.rate=", "a number"]),
        ("on=1", ["config.on=1", "true or false"]),
        ("on=yes", ["config.on=yes", "true or false"]),
        ("pair=0.5", ["config.pair=0.5", "(0.9, 1.0)"]),
        ("pair=a,b", ["config.pair=a,b", "(0.9, 1.0)"]),
        ("texts=('a', 1)", ["config.texts=('a', 1)"]),
        ("model=3", ["config.model", "model.vision.width", "model.embed_dim"]),
        ("model.vision=3", ["config.model.vision", "model.vision.width"]),
        ("sets=3", ["config.sets"]),
        ("steps", ["config.steps", "--config.steps=VALUE"]),
        ("stepz=3", ["config.stepz", "did you mean config.steps?"]),
        ("model.vision.widht=3", ["config.model.vision.widht", "config.model.vision.width"]),
        ("model.vision.width.x=3", ["config.model.vision.width.x"]),
        ("steps.more=3", ["config.steps.more"]),
        ("qqqq=3", ["config.qqqq", "--help"]),
        ("=3", ["config."]),
    ],
)
def test_a_wrong_override_is_one_line(item: str, words: list[str]) -> None:
    c = example()
    with pytest.raises(UserError) as error:
        override(c, item)
    assert says(error.value, *words) or len(item) > 300
    assert c.to_dict() == example().to_dict()


@given(st.text(max_size=30), st.sampled_from(["steps", "rate", "on", "pair", "texts", "none"]))
def test_no_text_gives_another_error(text: str, key: str) -> None:
    c = example()
    before = dict(flatten(c))[key]
    try:
        override(c, f"{key}={text}")
    except UserError:
        assert c.to_dict() == example().to_dict()
    else:
        assert before is None or type(dict(flatten(c))[key]) is type(before)


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_load_and_hold_together(name: str) -> None:
    c, doc = load(str(ROOT / "configs" / f"{name}.py"), ["steps=200000", "batch_size=256"])
    assert (c.steps, c.batch_size) == (200_000, 256)
    check(c, devices=8)
    assert doc.strip()
    assert c.is_locked
    assert json.loads(to_json(c))["steps"] == 200_000


@pytest.mark.parametrize("name", CONFIGS)
def test_describe_lists_keys_that_can_be_set(name: str) -> None:
    c, _ = load(str(ROOT / "configs" / f"{name}.py"))
    lines = describe(c).splitlines()
    assert len(lines) == len(dict(flatten(c)))
    for line in lines:
        key, _, value = line.strip().removeprefix("--config.").partition("=")
        standing = dict(flatten(c))[key]
        if isinstance(standing, ConfigDict):
            assert value == "{}"
            continue
        assert ast.literal_eval(value) == standing
        item = f"{key}={standing if isinstance(standing, str) else value}"
        before = c.to_dict()
        override(c, item)
        assert c.to_dict() == before


# Radford et al. 2021: table 18 (and 2.5), tables 19 and 20.
@pytest.mark.parametrize(
    ("name", "embed_dim", "vision", "text_width", "text_heads"),
    [
        ("vit_b32", 512, (224, 32, 768, 12, 12), 512, 8),
        ("vit_b16", 512, (224, 16, 768, 12, 12), 512, 8),
        ("vit_l14", 768, (224, 14, 1024, 24, 16), 768, 12),
        ("vit_l14_336", 768, (336, 14, 1024, 24, 16), 768, 12),
    ],
)
def test_the_vits_are_the_papers(
    name: str, embed_dim: int, vision: tuple[int, ...], text_width: int, text_heads: int
) -> None:
    c, _ = load(str(ROOT / "configs" / f"{name}.py"))
    v, t, o = c.model.vision, c.model.text, c.optimizer
    assert c.model.embed_dim == embed_dim
    assert (v.image_size, v.patch_size, v.width, v.layers, v.heads) == vision
    assert (t.width, t.heads, t.layers) == (text_width, text_heads, 12)
    assert (t.vocab_size, t.context_length) == (49_408, 77)
    assert c.batch_size == 32_768
    assert o.warmup_steps == 2_000
    assert o.weight_decay == 0.2
    assert (o.b1, o.b2, o.eps) == (0.9, 0.98, 1e-6)
    assert o.learning_rate == {"vit_b32": 5e-4, "vit_b16": 5e-4, "vit_l14": 4e-4}.get(name, 2e-5)
    epochs = 1 if name == "vit_l14_336" else 32
    assert c.batch_size * c.steps == pytest.approx(epochs * 400e6, rel=0.01)


def config_file(folder: Path, content: str, name: str = "mine.py") -> str:
    (folder / name).write_text(content)
    return str(folder / name)


GOOD = """from ml_collections import ConfigDict
def get_config(): return ConfigDict({"steps": 3})
"""


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("x = 1", "get_config"),
        ("def get_config(): return 3", "ConfigDict"),
        ("def get_config(): return {}", "ConfigDict"),
        ("def get_config(): raise ValueError('one\\ntwo')", "ValueError"),
        ("def get_config(x): return x", "TypeError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("\0", "mine.py"),
    ],
)
def test_a_broken_config_file_is_one_line(tmp_path: Path, content: str, word: str) -> None:
    path = config_file(tmp_path, content)
    with pytest.raises(UserError) as error:
        load(path)
    assert says(error.value, path, word)


def test_files_that_are_no_config(tmp_path: Path) -> None:
    for path in (str(tmp_path / "no.py"), str(tmp_path)):
        with pytest.raises(UserError) as error:
            load(path)
        assert says(error.value, path, "vit_b16")
    path = config_file(tmp_path, "steps: 3", "run.yaml")
    with pytest.raises(UserError) as error:
        load(path)
    assert says(error.value, path, ".py")


def test_a_config_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c, doc = load(config_file(tmp_path, f'"""Mine."""\n{GOOD}'), ["steps=5"])
    assert (c.steps, doc) == (5, "Mine.")
    monkeypatch.chdir(tmp_path)
    inherits = "from configs import common\nget_config = common.get_config"
    assert load(config_file(tmp_path, inherits, "own.py"))[0].batch_size == 32_768
    with pytest.raises(UserError, match="bad override"):
        load(config_file(tmp_path, RAISES))


RAISES = """from clip_jax.errors import UserError
def get_config(): raise UserError("bad override")
"""


def changed(**values: Any) -> ConfigDict:
    c, _ = load(VIT_B16)
    with c.unlocked():
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    return c


def test_the_papers_config_is_sound() -> None:
    for devices in (1, 8, 256, 4096):
        check(changed(), devices)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("epochs", -1.0),
        ("optimizer.timescale", 0),
        ("optimizer.cooldown_steps", 7),
        ("batch_size", 0),
        ("batch_size", -8),
        ("seed", -1),
        ("seed", 2**32),
        ("dtype", "float16"),
        ("log.every", 0),
        ("checkpoint.every", 0),
        ("checkpoint.keep", -1),
        ("checkpoint.keep_every", -1),
        ("early_stop", -1),
        ("evaluate.loss_batch", 1),
        ("evaluate.every", 0),
        ("evaluate.batch_size", 0),
        ("evaluate.pictures", -1),
        ("evaluate.templates", ()),
        ("evaluate.templates", ("a photo of {name}",)),
        ("evaluate.caption", "{caption"),
        ("data.threads", 0),
        ("data.workers", -1),
        ("data.prefetch", 0),
        ("data.cache_mib", -1),
        ("data.captions", ()),
        ("data.captions", ("{caption}", "{x!r}")),
        ("data.captions", ("{caption:some}",)),
        ("data.caption_weights", (1.0, 2.0)),
        ("data.caption_weights", (-1.0,)),
        ("data.filter.min_side", -1),
        ("data.filter.max_aspect", 0.5),
        ("data.filter.duplicates", -2),
        ("data.augment.flip", 2.0),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", -1e-3),
        ("optimizer.final_learning_rate", -1e-3),
        ("optimizer.warmup_steps", -1),
        ("optimizer.warmup_steps", 10**9),
        ("optimizer.b1", 1.0),
        ("optimizer.b2", -0.1),
        ("optimizer.eps", 0.0),
        ("optimizer.weight_decay", -0.2),
        ("optimizer.clip_norm", -1.0),
    ],
)
def test_a_value_out_of_bounds_is_named(key: str, value: Any) -> None:
    c = changed(**{key.replace(".", "__"): value})
    with pytest.raises(UserError) as error:
        check(c, devices=1)
    assert says(error.value, f"config.{key}")


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("dtype", "float32, bfloat16, mixed"),
        ("optimizer.schedule", "cosine, linear"),
        ("optimizer.moments", "float32, bfloat16"),
        ("optimizer.text_weights", "float32, bfloat16"),
    ],
)
def test_a_value_that_there_is_not_is_named_with_those_that_there_are(
    key: str, choices: str
) -> None:
    with pytest.raises(UserError) as error:
        check(changed(**{key.replace(".", "__"): "half"}), 1)
    assert says(error.value, f"config.{key}='half'", choices)
    for value in choices.split(", "):
        check(changed(**{key.replace(".", "__"): value}), 1)


def test_lamb_and_muon_do_not_go_together() -> None:
    with pytest.raises(UserError) as error:
        check(changed(optimizer__name="lamb", optimizer__muon_learning_rate=0.02), 1)
    assert says(error.value, "config.optimizer.muon_learning_rate=0.02", "name=lamb")


def test_muon_by_name_needs_its_rate() -> None:
    with pytest.raises(UserError) as error:
        check(changed(optimizer__name="muon"), 1)
    assert says(error.value, "config.optimizer.muon_learning_rate", "name=muon", "0.01")
    check(changed(optimizer__name="muon", optimizer__muon_learning_rate=0.02), 1)


MIX = "{'a': {'data': 'a.tar', 'weight': 3}, 'b': {'data': 'b.csv', 'weight': 1, 'root': '/x'}}"


def test_groups_of_the_users_own_names_are_set_as_a_whole_or_by_key() -> None:
    c, _ = load(VIT_B16, [f"data.mix={MIX}", "data.mix.b.weight=2", "data.filter.most={'x': 0.5}"])
    check(c, 1)
    assert c.data.mix.to_dict() == ast.literal_eval(MIX.replace(": 1,", ": 2,"))
    assert c.data.filter.most.to_dict() == {"x": 0.5}
    assert "--config.data.mix.b.weight=2" in describe(c)
    override(c, "data.mix={}")
    assert not c.data.mix
    for item in (
        *("data.mix.a.data=/x/{0..9}.tar", "data.mix.a.weight=2", "data.mix.a.weight=2.5"),
        *("data.mix.a.filter.least.x=1", "data.filter.least.x=0.25", "data.filter.most.x=1"),
        *("data.caption_weights=3", "data.caption_weights=(3,)"),
    ):
        override(c, item)
    check(c, 1)
    a = {"data": "/x/{0..9}.tar", "weight": 2.5, "filter": {"least": {"x": 1}}}
    assert c.data.mix.to_dict() == {"a": a} and c.data.caption_weights == (3,)
    assert (c.data.filter.least.x, c.data.filter.most.x) == (0.25, 1)
    override(c, "data.mix={}")
    quick, _ = load(str(ROOT / "configs" / "quickstart.py"), ["evaluate.sets={}"])
    assert not quick.evaluate.sets
    override(quick, "evaluate.sets.mine.data=/x/test.csv")
    assert quick.evaluate.sets.to_dict() == {"mine": {"data": "/x/test.csv"}}
    for item in ("data.mix.", "data.mix..x=3", "data.mix.a", "evaluate.sets.a"):
        with pytest.raises(UserError) as error:
            override(c, item)
        assert says(error.value, f"config.{item.partition('=')[0]}")
    for text in ("3", "a.tar", "{'a'}", "{1: 2}", "{'a.b': 1}", "{", "", "{'a': " * 99):
        with pytest.raises(UserError) as error:
            override(c, f"data.mix={text}")
        assert says(error.value, f"config.data.mix={text:.50}", "{'name': …}")
        assert not c.data.mix


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([f"data.mix={MIX}", "data.train=c.tar"], ["config.data.train='c.tar'", "config.data.mix"]),
        ([f"data.mix={MIX}", "data.mix.b.weight=0"], ["config.data.mix.b.weight=0", "above 0"]),
        (["data.mix={'a': {'data': 'a', 'epoch': 1}}"], ["config.data.mix.a.epoch", "epochs"]),
        (["data.mix.a.weight=3"], ["config.data.mix.a must hold data"]),
        (["data.mix.a.data.x=3"], ["config.data.mix.a.data={'x': 3}", "text"]),
        (["data.filter.least.x=much"], ["config.data.filter.least", "number"]),
        (["data.caption_weights=much"], ["config.data.caption_weights=('much',)", "number"]),
        (["data.filter.least={'x': 'much'}"], ["config.data.filter.least", "number"]),
        (["steps=50", "epochs=2.5"], ["config.steps=50 and config.epochs=2.5 are both given"]),
        (
            ["steps=3000", "optimizer.schedule=rsqrt", "optimizer.cooldown_steps=2000"],
            ["config.optimizer.cooldown_steps=2000", "config.steps=3000"],
        ),
        (
            ["optimizer.schedule=constant", "optimizer.final_learning_rate=1e-5"],
            ["config.optimizer.final_learning_rate=1e-05", "config.optimizer.cooldown_steps"],
        ),
        (["checkpoint.keep_every=1500"], ["config.checkpoint.keep_every=1500", "multiple", 1000]),
        (["checkpoint.best=loss"], ["config.checkpoint.best='loss'", "metric of an evaluation"]),
        (["early_stop=3"], ["config.early_stop=3", "config.checkpoint.best"]),
        (["steps=5000", "optimizer.ends=(5000,)"], ["config.optimizer.ends=(5000,)", "below"]),
        (["steps=5000", "optimizer.ends=('a',)"], ["config.optimizer.ends=('a',)", "whole number"]),
        (
            ["steps=5000", "optimizer.ends=(4000,)", "optimizer.then=rewarm"],
            ["config.optimizer.warmup_steps=2000", "config.steps=5000 since 4000"],
        ),
        (["optimizer.then=stop"], ["config.optimizer.then='stop'", "rewarm"]),
        (
            ["weights.optimizer=True", "weights.path=a", "lora.rank=2"],
            ["config.weights.optimizer=True", "config.lora.rank=2"],
        ),
        (["weights.optimizer=True"], ["config.weights.optimizer=True", "config.weights.path"]),
        (["data.label=class"], ["config.data.label='class'", "config.loss.multi_positive"]),
        (["data.label={", "loss.multi_positive=True"], ["config.data.label='{'", "field"]),
    ],
)
def test_wrong_values_are_found_before_any_file_is_opened(
    items: list[str], words: list[str]
) -> None:
    c, _ = load(VIT_B16, items)
    with pytest.raises(UserError) as error:
        check(c, 1)
    assert says(error.value, *words)


def test_epochs_are_steps_once_the_data_is_known() -> None:
    c = check(changed(epochs=2.5, optimizer__warmup_steps=4, batch_size=8))
    assert (c.steps, c.epochs) == (0, 2.5)
    for rows, steps in ((16, 5), (17, 6), (160, 50), (161, 51)):
        assert with_steps(c, rows).steps == steps
    assert with_steps(check(changed(epochs=0.1, batch_size=8)), 10**6).steps == 12_500
    assert with_steps(check(changed()), 10).steps == changed().steps
    with pytest.raises(UserError) as error:
        with_steps(c, 8)
    assert says(error.value, "warmup_steps=4", "config.steps=3, from config.epochs=2.5")


def test_bounds_themselves_are_good() -> None:
    check(changed(steps=1, optimizer__warmup_steps=0, batch_size=1, data__workers=0), 1)
    check(changed(optimizer__final_learning_rate=0.0, optimizer__b1=0.0, evaluate__pictures=0), 1)


@pytest.mark.parametrize(
    ("batch_size", "devices", "tensor", "accumulate", "number"),
    [(100, 8, 1, 1, 8), (12, 8, 2, 1, 4), (4, 8, 1, 1, 8), (24, 8, 1, 2, 16), (48, 8, 1, 2, 16)],
)
def test_a_batch_that_does_not_divide(
    batch_size: int, devices: int, tensor: int, accumulate: int, number: int
) -> None:
    c = changed(batch_size=batch_size, mesh__tensor=tensor, accumulate=accumulate)
    if batch_size % number == 0:
        check(c, devices)
        return
    with pytest.raises(UserError) as error:
        check(c, devices)
    assert says(error.value, f"config.batch_size={batch_size}", f"a multiple of {number}")
    advice = int(str(error.value).rpartition("such as ")[2])
    check(changed(batch_size=advice, mesh__tensor=tensor, accumulate=accumulate), devices)


def test_differences_list_the_keys_that_change_the_numbers() -> None:
    old = json.loads(to_json(changed()))
    assert differences(old, changed().to_dict()) == []
    assert differences(changed().to_dict(), changed().to_dict()) == []
    free = changed(
        workdir="x", log__every=1, checkpoint__keep=9, data__workers=3, mesh__fsdp=2, remat="none"
    )
    assert differences(old, free.to_dict()) == []
    new = changed(seed=3, data__captions=("{x}",), optimizer__learning_rate=1e-4)
    assert differences(old, new.to_dict()) == [
        "data.captions: ['{caption}'] → ['{x}']",
        "optimizer.learning_rate: 0.0005 → 0.0001",
        "seed: 0 → 3",
    ]


def test_filters_and_mixtures_are_part_of_a_run() -> None:
    old = json.loads(to_json(changed()))
    assert differences(old, changed(data__index="beside").to_dict()) == []
    filtered, _ = load(VIT_B16, ["data.filter.least={'x': 0.5}", "data.filter.min_side=64"])
    lines = ["data.filter.least.x: None → 0.5", "data.filter.min_side: 0 → 64"]
    assert differences(old, filtered.to_dict()) == lines
    del old["data"]["filter"], old["data"]["mix"], old["data"]["caption_weights"]
    assert differences(old, changed().to_dict()) == [], "a run from before there were filters"
    assert differences(old, filtered.to_dict()) == lines
    mixed, more = (
        load(VIT_B16, [f"data.mix={MIX}", *extra])[0] for extra in ([], ["data.mix.b.weight=2"])
    )
    saved = json.loads(to_json(mixed))
    assert differences(saved, mixed.to_dict()) == []
    assert differences(saved, more.to_dict()) == ["data.mix.b.weight: 1 → 2"]
    assert differences(old, mixed.to_dict())[0] == "data.mix.a.data: None → 'a.tar'"


def test_a_run_older_than_a_key_has_its_default() -> None:
    old = json.loads(to_json(changed()))
    for key in ("name", "schedule", "moments", "text_weights"):
        del old["optimizer"][key]
    assert differences(old, changed().to_dict()) == []
    assert differences(old, changed(optimizer__moments="bfloat16").to_dict()) == [
        "optimizer.moments: 'float32' → 'bfloat16'"
    ]
    other = changed().to_dict()
    del other["seed"]
    assert differences(json.loads(to_json(changed())), other) == ["seed: 0 → None"]
    resnet = load(str(ROOT / "configs" / "rn50.py"))[0].to_dict()
    older = json.loads(json.dumps(resnet))
    del older["optimizer"]["moments"]
    assert differences(older, resnet) == [], "defaults fill in what is new, nothing else"


def test_check_needs_no_device() -> None:
    """`config` says what is wrong before jax is asked for devices, so it may not import it."""
    imported = ast.parse(Path(config_lib.__file__).read_text())
    names = {a.name for n in ast.walk(imported) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(imported) if isinstance(n, ast.ImportFrom)}
    assert not any(name.split(".")[0] in ("jax", "flax", "optax") for name in names)

"""A stranger's folder is read or refused in one line: soon, in little memory, unexecuted."""

import json
import os
import re
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from weightfiles import (
    CODE,
    PAIRS,
    W,
    archive,
    entry,
    module,
    named,
    raw,
    several,
    state,
    stored,
    text,
    written,
)

import clip_jax
from clip_jax.errors import UserError
from clip_jax.models.clip import CLIP, variables
from clip_jax.models.model_config import CLIPConfig, TextConfig, VisionConfig
from clip_jax.weights import export, library
from clip_jax.weights.tensor_writing import write_safetensors
from support import says

SECONDS, BYTES = 10, 256 << 20  # a refusal takes under two seconds where nothing else runs
HUGE = 1 << 24
ESCAPE = "\x1b[2J\x1b]0;owned\x07"
DEEP = "[" * 100_000 + "]" * 100_000
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is as it should be."""
    folder = tmp_path_factory.mktemp("good")
    shape: dict[str, Any] = dict(width=8, layers=1, heads=1)
    config = CLIPConfig(
        8,
        vision=VisionConfig(image_size=8, patch_size=4, **shape),
        text=TextConfig(context_length=8, **shape),
    )
    parameters = variables(CLIP(config, rngs=nnx.Rngs(0)))
    export.write(folder, jax.tree.map(np.asarray, parameters), config, "hugging_face")
    assert clip_jax.load(folder)[0].config == config
    return folder


@contextmanager
def limits() -> Iterator[None]:
    """Fails what hangs, and what takes much memory where the system tells."""

    def late(*_: Any) -> None:
        pytest.fail(f"no answer in {SECONDS} s")

    def peak() -> int:
        match = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text()) if CLEAR.exists() else None
        return int(match[1]) << 10 if match else 0

    if CLEAR.exists():
        CLEAR.write_text("5")
    before, handler = peak(), signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert peak() - before < BYTES


def refused(read: Callable[[], Any], *words: object) -> bool:
    """Whether it is refused as it should be, with no character that a terminal would obey."""
    with limits(), pytest.raises(UserError) as error:
        read()
    return says(error.value, *words) and str(error.value).isprintable()


def read_found(folder: Path) -> Any:
    return library.read_variables(library.find_weights(folder))


def keys(name: str, *path: str, **values: Any) -> Change:
    """Sets keys of the JSON file `name`, in the object under `path`."""

    def change(folder: Path) -> None:
        file = folder / name
        whole = json.loads(file.read_text()) if file.exists() else {}
        node = whole
        for key in path:
            node = node.setdefault(key, {})
        node.update(values)
        file.write_text(json.dumps(whole))

    return change


def content(name: str, of: str | bytes) -> Change:
    return lambda folder: written(folder / name, of)


def instead(name: str, make: Change) -> Change:
    """Puts something else where a file is."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def several_changes(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def vision(**values: Any) -> Change:
    return keys("config.json", "vision_config", **values)


def words_tower(**values: Any) -> Change:
    return keys("config.json", "text_config", **values)


def pixels(**values: Any) -> Change:
    return keys("preprocessor_config.json", **values)


def another(weights: str, config: str, values: dict[str, Any], **pixels: Any) -> Change:
    """The config of another kind of model, beside weights that have one tensor of its kind."""

    def change(folder: Path) -> None:
        (folder / "config.json").unlink()
        (folder / "preprocessor_config.json").unlink()
        write_safetensors(folder / "model.safetensors", {weights: W})
        (folder / config).write_text(json.dumps(values))
        if pixels:
            (folder / "preprocessor_config.json").write_text(json.dumps(pixels))

    return change


def resnet(**values: Any) -> Change:
    tower = dict(image_size=224, layers=[3, 4, 6, 3], width=64, patch_size=None) | values
    model = dict(embed_dim=512, vision_cfg=tower, text_cfg={})
    return another("visual.w", "open_clip_config.json", dict(model_cfg=model, preprocess_cfg={}))


def efficientnet(stages: int, **values: Any) -> Change:
    columns = {
        "kernel_sizes": 3,
        "strides": 1,
        "expand_ratios": 1,
        "in_channels": 32,
        "out_channels": 32,
        "num_block_repeats": 1,
    } | values
    tower = {key: [value] * stages for key, value in columns.items()}
    config = dict(model_type="align", projection_dim=32, text_config={})
    config["vision_config"] = tower | dict(width_coefficient=1.0)
    return another(
        "vision_model.w",
        "config.json",
        config,
        image_processor_type="EfficientNetImageProcessor",
    )


CONFIGS: dict[str, Change] = {
    "deep tower": vision(num_hidden_layers=HUGE),
    "deep text": words_tower(num_hidden_layers=HUGE),
    "deep ResNet": resnet(layers=[HUGE] * 4),
    "many stages": efficientnet(256),
    "deep stages": efficientnet(7, num_block_repeats=HUGE),
    "an escape for a kind": keys("config.json", model_type=ESCAPE),
    "a kind without end": keys("config.json", model_type="x" * (1 << 20)),
    "an escape for an activation": vision(hidden_act=ESCAPE),
    "an activation without end": vision(hidden_act="x" * (1 << 20)),
    "two activations without end": several_changes(
        vision(hidden_act="x" * (1 << 20)), words_tower(hidden_act="x" * (1 << 20))),
    "a run's config of nothing": content("config.json", "{}"),
    "a run's config of noise": content("config.json", '{{"model": {{"vision": {}}}}}'.format("[]")),
    "wide": vision(hidden_size=HUGE, intermediate_size=HUGE, num_attention_heads=1),
    "wide text": words_tower(hidden_size=HUGE, intermediate_size=HUGE),
    "projection": keys("config.json", projection_dim=HUGE),
    "vocabulary": words_tower(vocab_size=HUGE, eos_token_id=2),
    "texts without end": words_tower(max_position_embeddings=HUGE),
    "pixels without end": vision(image_size=HUGE, patch_size=1),
    "many pixels": several_changes(vision(image_size=8192, patch_size=1), pixels(
        size=8192, crop_size=8192)),
    "wide ResNet": resnet(width=HUGE),
    "no heads": resnet(head_width=HUGE),
    "large windows": efficientnet(7, kernel_sizes=HUGE),
    "many channels": efficientnet(7, out_channels=HUGE),
    "above the largest": vision(hidden_size=1 << 70),
    "negative": vision(num_hidden_layers=-1),
    "layers of text": vision(num_hidden_layers="12"),
    "no number": vision(layer_norm_eps=float("nan")),
    "infinite": keys("config.json", logit_scale_init_value=float("inf")),
    "towers of a list": keys("config.json", vision_config=[1]),
    "an escape for a size": vision(hidden_size=ESCAPE),
    "an escape for a tower": keys("config.json", text_config=ESCAPE),
    "empty": content("config.json", ""),
    "no object": content("config.json", "[1, 2]"),
    "no JSON": content("config.json", '{"model_type": "clip"'),
    "no UTF-8": content("config.json", b'{"model_type": "\xff"}'),
    "deep": content("config.json", f'{{"model_type": "clip", "a": {DEEP}}}'),
    "digits without end": content("config.json", '{"model_type": %s}' % ("1" * 5000)),
    "no config but megabytes": content("config.json", "[" + "[],\n" * (2 << 20)),
    "a config that is a folder": instead("config.json", Path.mkdir),
    "a config that is a pipe": instead("config.json", os.mkfifo),
    "a config without end": instead("config.json", lambda path: path.symlink_to("/dev/zero")),
    "a config of itself": instead("config.json", lambda path: path.symlink_to(path)),
    "pictures without end": pixels(size=HUGE, crop_size=HUGE),
    "pictures of 1e300": pixels(size={"shortest_edge": 1e300}),
    "no pictures": pixels(crop_size=0),
    "an escape for pictures": pixels(size=ESCAPE),
    "an escape for a processor": pixels(image_processor_type=ESCAPE),
    "an escape for a side": pixels(size={ESCAPE: 8}),
    "colours of text": pixels(image_mean=[ESCAPE] * 3),
    "colours without end": pixels(image_std=[1e-300] * 3),
    "deep pictures": content("preprocessor_config.json", f'{{"size": {DEEP}}}'),
}  # fmt: skip


def index(shard: str) -> Change:
    """Shards in place of the weights; `secret.safetensors` lies beside the folder."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
        weights = {"logit_scale": shard}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))

    return change


def torch_file(name: str, root: bytes, **members: bytes | str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        archive(folder / name, root, **members)

    return change


def bomb(path: Path) -> None:
    """A few KB that unpack to half a gigabyte."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("m/data.pkl", "w") as member,
    ):
        for _ in range(32):
            member.write(bytes(16 << 20))


def linked_shard(folder: Path) -> None:
    index("a.safetensors")(folder)
    (folder / "a.safetensors").symlink_to(folder.parent / "secret.safetensors")


WEIGHTS: dict[str, Change] = {
    "a folder": instead("model.safetensors", Path.mkdir),
    "a pipe": instead("model.safetensors", os.mkfifo),
    "zeros without end": instead("model.safetensors", lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": instead("model.safetensors", lambda path: path.symlink_to(path)),
    "a link to what is no weights": instead(
        "model.safetensors", lambda path: path.symlink_to(__file__)),
    "an escape for a name": content("model.safetensors", raw({ESCAPE: entry()})),
    "an escape for a dtype": content("model.safetensors", raw({"w": entry(ESCAPE)})),
    "the same name twice": content(
        "model.safetensors", raw('{"w": %s, "w": %s}' % ((json.dumps(entry()),) * 2))),
    "deep": content("model.safetensors", raw(f'{{"w":{DEEP}}}')),
    "names without end": content(
        "model.safetensors", raw('{"w": [%s{}]}' % ("{}," * (1 << 20)), b"")),
    "a file of an escape": several_changes(
        lambda folder: (folder / "model.safetensors").unlink(),
        content(f"{ESCAPE}.safetensors", raw({"w": entry(ESCAPE)}))),
    "a shard elsewhere": index("../secret.safetensors"),
    "a shard of an absolute name": index("/etc/passwd.safetensors"),
    "a shard of an escape": index(f"{ESCAPE}.safetensors"),
    "a shard that leads out": linked_shard,
    "an index without end": several_changes(
        index("a"), content("model.safetensors.index.json", f'{{"weight_map": {DEEP}}}')),
    "a bomb": several_changes(
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: bomb(folder / "pytorch_model.bin")),
    "a bomb of a program": torch_file(
        "pytorch_model.bin",
        module(w=stored()),
        **{"constants.pkl": b"", "code/__torch__.py": "#" * (64 << 20)}),
    "a bomb of modules": torch_file(
        "pytorch_model.bin",
        module(w=stored()),
        **{"constants.pkl": b"", "code/__torch__.py": CODE * (15 << 14)}),
    "a bomb of views": torch_file("pytorch_model.bin", state(w=stored((1 << 40,), (0,)))),
    "an escape in an archive": torch_file("pytorch_model.bin", state(**{ESCAPE: stored()})),
    "an escape for a storage": torch_file("pytorch_model.bin", state(w=stored(key=ESCAPE))),
    "an escape for a class": torch_file("pytorch_model.bin", named(f"{ESCAPE} x")),
    "an escape for a member": torch_file("pytorch_model.bin", state(), **{ESCAPE: b""}),
    "a hash without end": torch_file("pytorch_model.bin", b"}" + PAIRS + b"Ns"),
}  # fmt: skip


@pytest.mark.parametrize("read", [clip_jax.load, read_found], ids=["load", "find"])
@pytest.mark.parametrize("change", (CONFIGS | WEIGHTS).values(), ids=CONFIGS | WEIGHTS)
def test_a_hostile_folder_is_refused(
    tmp_path: Path, good: Path, change: Change, read: Callable[[Path], Any]
) -> None:
    folder = shutil.copytree(good, tmp_path / "m")
    change(folder)
    assert refused(lambda: read(folder))


def tokens(**settings: Any) -> Change:
    return keys("tokenizer_config.json", **settings)


VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
BERT = several_changes(tokens(tokenizer_class="BertTokenizer"), content("vocab.txt", VOCABULARY))
SIGLIP = tokens(tokenizer_class="SiglipTokenizer")
TOKENIZERS: dict[str, Change] = {
    "SentencePiece of nothing": several_changes(SIGLIP, content("spiece.model", b"")),
    "SentencePiece of noise": several_changes(SIGLIP, content("spiece.model", bytes(range(256)))),
    "SentencePiece without end": several_changes(
        SIGLIP, content("spiece.model", b"\x0a\xff\xff\xff\xff\x0f" * 9)),
    "words of nothing": several_changes(BERT, content("vocab.txt", b"")),
    "words of noise": several_changes(BERT, content("vocab.txt", bytes(range(256)))),
    "words that are another's": several_changes(BERT, content("vocab.txt", f"{ESCAPE}\n" * 9)),
    "an escape for a token": several_changes(BERT, tokens(cls_token=ESCAPE)),
    "a token without end": several_changes(BERT, tokens(cls_token="x" * (1 << 20))),
    "an escape for a token more": several_changes(
        BERT, tokens(added_tokens_decoder={"9": {"content": ESCAPE}})),
    "an escape for a kind": several_changes(
        tokens(tokenizer_class="BertTokenizer"),
        keys("tokenizer.json", "model", type=ESCAPE)),
    "settings of text": several_changes(BERT, tokens(do_lower_case=ESCAPE)),
    "settings of a list": several_changes(BERT, content("tokenizer_config.json", "[]")),
    "deep settings": several_changes(BERT, content("tokenizer_config.json", f'{{"a":{DEEP}}}')),
    "deep words": several_changes(
        tokens(tokenizer_class="BertTokenizer"),
        content("tokenizer.json", f'{{"model": {DEEP}}}')),
    "deep names": content("vocab.json", DEEP),
}  # fmt: skip


@pytest.mark.parametrize("change", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_hostile_tokenizer_is_refused(tmp_path: Path, good: Path, change: Change) -> None:
    folder = shutil.copytree(good, tmp_path / "m")
    change(folder)
    assert refused(lambda: clip_jax.load(folder))


def executing(marker: Path) -> bytes:
    """A pickle that, loaded, leaves `marker`."""
    return b"cos\nsystem\n" + several(text(f"touch '{marker}'")) + b"R"


def test_the_pickles_below_would_execute(tmp_path: Path) -> None:
    import pickle

    pickle.loads(b"\x80\x02" + executing(tmp_path / "marker") + b".")
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "open_clip_pytorch_model.bin", "clip.pt"])
@pytest.mark.parametrize("where", ["bare", "archive", "state dict", "class", "state", "program"])
def test_no_pickle_is_executed(tmp_path: Path, good: Path, where: str, name: str) -> None:
    folder, marker = shutil.copytree(good, tmp_path / "m"), tmp_path / "marker"
    (folder / "model.safetensors").unlink()
    call = executing(marker)
    path = folder / name
    if where == "bare":
        written(path, b"\x80\x02" + call + b".")
    elif where == "program":
        members = {"constants.pkl": b"\x80\x02" + call + b".", "code/__torch__.py": CODE}
        archive(path, module(w=call), **members)
    else:
        roots = {"archive": call, "state dict": state(w=stored(), v=call)}
        roots |= {"class": call + b")\x81", "state": module() + call + b"b"}
        archive(path, roots[where])
    given = path if name == "clip.pt" else folder
    assert refused(lambda: read_found(given), given)
    if given == folder:
        assert refused(lambda: clip_jax.load(folder), folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_file_of_two_values_for_a_key_means_the_last(
    tmp_path: Path, good: Path, name: str
) -> None:
    folder = shutil.copytree(good, tmp_path / "m")
    text = (folder / name).read_text()
    twice = '"model_type": 1' if name == "config.json" else '"size": "", "crop_size": ""'
    written(folder / name, text.replace("{", f"{{{twice},", 1))
    model, _, _ = clip_jax.load(folder)
    assert model.config.embed_dim == 8

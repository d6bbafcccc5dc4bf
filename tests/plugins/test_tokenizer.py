"""A user's file adds a tokenizer by its dotted path: no file of the package is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import runs
from clip_jax import tokenizers
from clip_jax.errors import UserError
from clip_jax.tokenizers import Tokenizer, load
from support import refused, says

PLUGIN = '''\
"""A tokenizer of bytes: ids 1 to 256, start 257, end 258."""
from clip_jax.tokenizers.packing import check_context_length, pack


class ByteTokenizer:
    vocab_size, sot_id, eot_id, pad_id = 259, 257, 258, 0

    @classmethod
    def open(cls, path, context_length):
        return cls(context_length or 77, bool(path))

    def __init__(self, context_length, lower=False):
        self.context_length, self.lower = check_context_length(context_length), lower

    def encode(self, text):
        return [1 + byte for byte in (text.lower() if self.lower else text).encode()]

    def decode(self, ids):
        ids = list(ids)
        ids = ids[: ids.index(self.eot_id)] if self.eot_id in ids else ids
        return bytes(i - 1 for i in ids if 0 < i < 257).decode(errors="replace")

    def __call__(self, texts, truncate=False):
        return pack(self, texts, truncate)
'''
NAME = "my_tokens:ByteTokenizer"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, from which modules can be imported."""
    (tmp_path / "my_tokens.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_tokens", raising=False)
    return tmp_path


def test_it_is_a_tokenizer_with_the_rows_of_any_other(here: Path) -> None:
    tokenizer = load(NAME, 6)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer("ab").tolist() == [[257, 98, 99, 258, 0, 0]]
    assert tokenizer.decode(tokenizer("ab")[0]) == "ab"
    assert load(NAME).context_length == 77


def test_the_part_after_a_second_colon_is_its_file(here: Path) -> None:
    assert load(f"{NAME}:vocab.txt").encode("A") == load(NAME).encode("a")


@pytest.mark.slow
def test_a_run_trains_resumes_and_evaluates_with_it(here: Path) -> None:
    config = runs.small_run(here, 20)
    flags = (f"--config.tokenizer={NAME}", "--config.steps=6", "--config.evaluate.every=6")
    done = runs.run(config, here / "run", *flags)
    assert done.returncode == 0, done.stderr
    assert (6, "zero_shot/held/top1") in runs.values(here / "run")
    (here / "my_tokens.py").write_text(PLUGIN.replace("1 + byte", "1 + (byte ^ 1)"))
    done = runs.run(config, here / "run", *flags)
    assert done.returncode and "another tokenizer" in done.stderr, "its ids are checked"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_tokens:No", "my_tokens has no No"),
        ("no_such_module:Tokens", "cannot import no_such_module"),
        ("my_tokens:pack", "no tokenizer: it needs a class method open(path, context_length)"),
        ("my_tokens:vocab.txt", "unknown tokenizer 'my_tokens:vocab.txt': use 'clip'"),
    ],
)
def test_a_wrong_name_is_one_line(here: Path, name: str, words: str) -> None:
    refused(lambda: load(name), words)


def test_an_incomplete_class_is_refused_with_what_it_lacks(here: Path) -> None:
    (here / "my_tokens.py").write_text(PLUGIN.replace("def decode", "def undo"))
    refused(lambda: load(NAME), f"{NAME} opens a ByteTokenizer without decode")


def test_known_prefixes_win(here: Path) -> None:
    (here / "clip.py").write_text(PLUGIN)
    refused(lambda: load("clip:ByteTokenizer"), "unknown tokenizer")
    names = ("clip", "sentencepiece", "wordpiece", "siglip", "huggingface")
    assert tokenizers.TOKENIZERS.names == names


def test_a_name_of_a_strangers_file_imports_nothing(here: Path) -> None:
    refused(lambda: load(NAME, trusted=False), "if you trust it, import my_tokens first")
    assert "my_tokens" not in sys.modules
    __import__("my_tokens")
    assert load(NAME, trusted=False).vocab_size == 259


@pytest.mark.parametrize(
    "name",
    [
        "tarfile:os:/tmp/x",  # os.open would make a file
        "os:system:touch x",
        "codecs:open:x",
        "tarfile:TarFile:x",
        "subprocess:Popen:x",
        "zipfile:ZipFile:x",
        "clip_jax.tokenizers.packing:pack",
    ],
)
def test_a_name_of_a_strangers_file_calls_nothing_but_a_tokenizer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    __import__(name.partition(":")[0])
    refused(lambda: load(name, trusted=False), "config.tokenizer=")
    assert not list(tmp_path.iterdir())


LOADING = """
import sys, clip_jax
sys.argv.pop(0)
if len(sys.argv) > 1:
    import my_tokens
model, *_ = clip_jax.load(sys.argv[0])
"""


@pytest.mark.slow
def test_a_run_with_it_is_loaded_once_its_module_is_trusted(here: Path) -> None:
    config = runs.small_run(here, 20)
    flags = (f"--config.tokenizer={NAME}", "--config.steps=1", "--config.evaluate.every=9")
    done = runs.run(config, here / "run", "--config.optimizer.warmup_steps=0", *flags)
    assert done.returncode == 0, done.stderr

    def loading(*more: str) -> str:
        command = [sys.executable, "-c", LOADING, str(here / "run"), *more]
        return subprocess.run(
            command, env=runs.environment(), cwd=here, capture_output=True, text=True
        ).stderr

    assert "if you trust it, import my_tokens first" in loading()
    assert "Error" not in loading("trusted")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("raise ValueError('boom')", ["tokenizing", "boom"]),
        ("return np.zeros((len(texts), 3), np.int32)", ["[2, 3]", "[2, 4]"]),
        ("return np.zeros((len(texts), 4))", ["float64", "integers"]),
        ("return np.full((len(texts), 4), -5)", ["from -5 to -5", "vocab_size=9"]),
        ("return np.full((len(texts), 4), 9)", ["from 9 to 9", "vocab_size=9"]),
    ],
)
def test_a_tokenizer_that_gives_wrong_rows_is_one_line(tmp_path, monkeypatch, call, words):
    (tmp_path / "odd_tokens.py").write_text(
        "import numpy as np\n"
        "class Odd:\n"
        "    vocab_size, context_length = 9, 4\n"
        "    sot_id = eot_id = pad_id = 0\n"
        "    @classmethod\n"
        "    def open(cls, path, context_length): return cls()\n"
        "    def encode(self, text): return [1]\n"
        "    def decode(self, ids): return ''\n"
        f"    def __call__(self, texts, truncate=False): {call}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_tokens", raising=False)
    with pytest.raises(UserError) as error:
        load("odd_tokens:Odd")
    assert says(error.value, "config.tokenizer=odd_tokens:Odd", *words)

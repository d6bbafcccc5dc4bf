"""Training repeats itself to the byte, models round-trip, and what can't be read is named."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.errors import UserError
from clip_jax.tokenizers import Tokenizer, load
from clip_jax.tokenizers.cleaning import clean
from clip_jax.tokenizers.sentencepiece import SentencePiece, main, train

CAPTIONS = [
    f"{opening} {colour} {animal} {place} {number}"
    for number, opening in enumerate(["a photo of a", "A drawing of the", "the emoji of a"])
    for colour in ["red", "Green", "golden", "black & white"]
    for animal in ["cat", "dog's house", "kangaroo", "café owl", "elephant"]
    for place in ["in the garden,", "on a mountain,", "near the sea,"]
]
PIECES = 360


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    train(CAPTIONS, folder / "folded.model", PIECES)
    train(CAPTIONS, folder / "exact.model", PIECES, lower=False, character_coverage=1.0)
    return folder


@pytest.fixture(scope="module")
def folded(folder: Path) -> SentencePiece:
    return SentencePiece(folder / "folded.model")


@pytest.fixture(scope="module")
def exact(folder: Path) -> SentencePiece:
    return SentencePiece(folder / "exact.model")


def test_training_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.model"
    train(iter(CAPTIONS), again, PIECES)
    assert again.read_bytes() == (folder / "folded.model").read_bytes()
    assert list(tmp_path.iterdir()) == [again], "nothing but the model is left behind"


def test_protocol_and_special_ids(folded: SentencePiece) -> None:
    assert isinstance(folded, Tokenizer)
    assert (folded.sot_id, folded.eot_id, folded.vocab_size) == (PIECES, PIECES + 1, PIECES + 2)
    assert (folded.pad_id, folded.context_length) == (0, 77)


def test_rows_hold_the_end_at_their_argmax(folded: SentencePiece) -> None:
    rows = folded(["a red cat", "", "日本語 😀"])
    assert rows.shape == (3, 77)
    assert rows.dtype == np.int32
    for row, text in zip(rows, ["a red cat", "", "日本語 😀"], strict=True):
        ids = folded.encode(text)
        assert row.tolist() == [PIECES, *ids, PIECES + 1] + [0] * (75 - len(ids))
        assert row.argmax() == len(ids) + 1
        assert folded.decode(row) == text


def test_training_learns_words(folded: SentencePiece) -> None:
    assert len(folded.encode("a photo of a golden kangaroo")) < 12


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=50), st.lists(st.sampled_from(CAPTIONS)).map(" ".join)))
def test_round_trip_is_exact_without_folding(exact: SentencePiece, text: str) -> None:
    # U+2581 is the character that SentencePiece writes for a space.
    text = text.replace("\u2581", "")
    ids = exact.encode(text)
    assert all(0 < i < PIECES for i in ids), "no text is unknown"
    # not of a cleaned text: a second cleaning can find mojibake in what the first one left
    assert exact.decode(ids) == clean(text).replace("\u2581", " ").strip()


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=50))
def test_folding_is_part_of_the_model(folded: SentencePiece, text: str) -> None:
    assert folded.encode(text.upper()) == folded.encode(text.lower())
    assert folded.decode(folded.encode(text)) == clean(text).lower()


def test_lower_folds_for_a_model_that_does_not(folder: Path, exact: SentencePiece) -> None:
    lowered = SentencePiece(folder / "exact.model", lower=True)
    assert lowered.decode(lowered.encode("A Red CAT")) == "a red cat"
    assert exact.decode(exact.encode("A Red CAT")) == "A Red CAT"


def test_text_is_cleaned_first(folded: SentencePiece) -> None:
    assert folded.encode("a  cafÃ© &amp;amp;\n cat") == folded.encode("a café & cat")


def test_over_long_text(folder: Path) -> None:
    tokenizer = load(f"sentencepiece:{folder / 'folded.model'}", 8)
    ids = tokenizer.encode(CAPTIONS[0])
    assert len(ids) > 6
    with pytest.raises(UserError, match=rf"takes {len(ids) + 2} tokens.*context_length 8"):
        tokenizer(CAPTIONS[0])
    assert tokenizer(CAPTIONS[0], truncate=True).tolist() == [[PIECES, *ids[:6], PIECES + 1]]


def test_decode_refuses_ids_out_of_range(folded: SentencePiece) -> None:
    for token in (-1, PIECES + 2):
        with pytest.raises(ValueError, match=rf"{token} is outside \[0, {PIECES + 2}\)"):
            folded.decode([token])


def test_a_pickle_does_not_need_the_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "moved.model"
    path.write_bytes((folder / "exact.model").read_bytes())
    pickled = pickle.dumps(SentencePiece(path, 20, lower=True))
    path.unlink()
    copy = pickle.loads(pickled)
    assert (copy.context_length, copy.vocab_size, copy.lower) == (20, PIECES + 2, True)
    assert copy.decode(copy.encode("A Red CAT")) == "a red cat"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.model'.*No such file"):
        load(f"sentencepiece:{tmp_path / 'none.model'}")


@pytest.mark.parametrize("length", [0, 1000, -10, None])
def test_a_corrupt_file_is_named(folder: Path, tmp_path: Path, length: int | None) -> None:
    content = (folder / "folded.model").read_bytes()
    path = tmp_path / "corrupt.model"
    path.write_bytes(b"not a model at all" if length is None else content[:length])
    with pytest.raises(UserError, match=r"corrupt\.model' is not a SentencePiece model"):
        SentencePiece(path)


@pytest.mark.parametrize(
    ("captions", "pieces", "message"),
    [
        ([], PIECES, "no captions"),
        (["", " \n"], PIECES, "no captions"),
        (CAPTIONS, 100_000, r"cannot train 100000 pieces.*set it to a value <= \d+"),
        (CAPTIONS, 200, r"cannot train 200 pieces.*smaller than required_chars"),
        (CAPTIONS, 0, "vocab_size must be a whole number above 0, not 0"),
    ],
)
def test_training_that_cannot_be(
    tmp_path: Path, captions: list[str], pieces: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(captions, tmp_path / "out.model", pieces)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.model"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*out\.model': No space left"):
        train(CAPTIONS, path, PIECES)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        train(CAPTIONS, tmp_path / "none" / "out.model", PIECES)


def test_embedded_models_lie_in_the_package() -> None:
    with pytest.raises(UserError, match=r"cannot read .*clip_jax.data.emoji.none\.model'"):
        load("sentencepiece:embedded:emoji/none.model")
    with pytest.raises(UserError, match=r"embedded:\.\./none\.model"):
        load("sentencepiece:embedded:../none.model")


def test_the_command_trains(folder: Path, tmp_path: Path) -> None:
    captions, model = tmp_path / "captions.txt", tmp_path / "out.model"
    captions.write_text("\n".join(CAPTIONS), encoding="utf-8")
    command = [sys.executable, "-m", "clip_jax.tokenizers.sentencepiece"]
    done = subprocess.run(
        [*command, str(captions), str(model), "--vocab-size", str(PIECES)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{model}: {PIECES} pieces, vocab_size {PIECES + 2}"
    assert model.read_bytes() == (folder / "folded.model").read_bytes()


def test_the_commands_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café".encode("latin-1"))
    model = str(tmp_path / "out.model")
    for captions, message in ((tmp_path / "none.txt", "No such file"), (latin, "is not UTF-8")):
        assert main([str(captions), model]) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("error: ")
        assert message in errors
        assert errors.count("\n") == 1


def test_the_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "--vocab-size" in capsys.readouterr().out

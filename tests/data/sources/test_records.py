"""ArrayRecord files of tf.train.Examples are their pairs, read without TensorFlow."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.example import Pair, PairError
from clip_jax.data.sources import SourceOptions, open_source, records
from clip_jax.data.sources.records import RecordSource
from support import refused, says

module = pytest.importorskip("array_record.python.array_record_module")

Values = Sequence[bytes] | Sequence[float] | Sequence[int]


def varint(number: int) -> bytes:
    number %= 1 << 64
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(features: Mapping[str, Values]) -> bytes:
    """A serialized tf.train.Example, by the wire format alone."""
    entries = b""
    for key, values in features.items():
        if values and isinstance(values[0], bytes):
            value = field(1, b"".join(field(1, v) for v in values))  # type: ignore[arg-type]
        elif values and isinstance(values[0], float):
            value = field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            value = field(3, field(1, b"".join(varint(int(v)) for v in values)))
        entries += field(1, field(1, key.encode()) + field(2, value))
    return field(1, entries)


def write(path: Path, examples: Sequence[bytes], options: str = "group_size:1") -> Path:
    writer = module.ArrayRecordWriter(str(path), options)
    for record in examples:
        writer.write(record)
    writer.close()
    return path


def pair(i: int, **more: Values) -> bytes:
    return example({"image": [b"\x89PNG %d" % i], "caption": [b"picture %d" % i], **more})


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.one_of(
            st.lists(st.binary(max_size=20), min_size=1, max_size=4),
            st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4),
            st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
        ),
        max_size=5,
    )
)
def test_an_example_is_parsed_as_it_was_written(features: dict[str, Any]) -> None:
    assert records.parse(example(features)) == features


@given(st.binary(max_size=200), st.integers(0, 200))
def test_anything_else_is_a_value_error(garbage: bytes, cut: int) -> None:
    for record in (garbage, pair(1)[:cut], pair(1)[:cut] + garbage):
        try:
            fields = records.parse(record)
        except ValueError:
            continue
        assert all(isinstance(values, list) for values in fields.values())


@pytest.mark.parametrize("options", ["group_size:1", "group_size:4,uncompressed"])
def test_records_are_pairs(tmp_path: Path, options: str) -> None:
    write(
        tmp_path / "a-0.array_record",
        [pair(i, n=[i], tags=[b"x", b"y"]) for i in range(5)],
        options,
    )
    write(
        tmp_path / "a-1.array_record",
        [pair(i, score=[0.5], odd=[b"\xff"]) for i in (5, 6)],
        options,
    )
    source = open_source(f"{tmp_path}/a-*.array_record")
    assert isinstance(source, RecordSource)
    expected = [
        *({"caption": f"picture {i}", "n": i, "tags": ["x", "y"]} for i in range(5)),
        *({"caption": f"picture {i}", "score": 0.5} for i in (5, 6)),
    ]
    again = pickle.loads(pickle.dumps(source))
    for i, text in enumerate(expected):
        name = f"{tmp_path}/a-*.array_record: record {i}"
        assert source[i] == again[np.int64(i)] == Pair(b"\x89PNG %d" % i, text, name)
    for outside in (-1, 7):
        with pytest.raises(IndexError):
            source[outside]
    before = source.fingerprint
    write(tmp_path / "a-1.array_record", [pair(9)], options)
    assert open_source(f"{tmp_path}/a-*.array_record").fingerprint != before


def test_files_that_array_record_calls_otherwise(tmp_path: Path) -> None:
    write(tmp_path / "a.arrayrecord", [example({"jpg": [b"J"], "text": [b"t"]})])
    assert open_source(f"{tmp_path}/a.arrayrecord")[0][:2] == (b"J", {"text": "t"})


def test_the_image_feature_can_be_configured(tmp_path: Path) -> None:
    path = write(tmp_path / "x.array_record", [example({"thumb": [b"1"], "text": [b"t"]})])
    refused(lambda: open_source(str(path)), path, "text, thumb", "config.data.image")
    assert open_source(str(path), SourceOptions("thumb"))[0][:2] == (b"1", {"text": "t"})


def test_records_that_are_no_pairs_are_named(tmp_path: Path) -> None:
    examples = [
        pair(0),
        b"\xff garbage",
        example({"caption": [b"x"]}),
        example({"image": [1]}),
        example({"image": [b"1", b"2"]}),
        b"",
    ]
    path = write(tmp_path / "x.array_record", examples)
    source = open_source(str(path))
    assert source[0].image == b"\x89PNG 0"
    for i in range(1, len(examples)):
        with pytest.raises(PairError) as error:
            source[i]
        assert error.value.reason == "unreadable" and says(error.value, path, f"record {i}")


@pytest.mark.parametrize("content", ["empty", "garbage", "cut", "zeros", "folder"])
def test_a_file_that_is_not_an_array_record_is_a_one_line_error(
    tmp_path: Path, content: str
) -> None:
    path = write(tmp_path / "x.array_record", [pair(i) for i in range(5)])
    raw = path.read_bytes()
    other = {"empty": b"", "garbage": b"hello " * 20_000, "cut": raw[: len(raw) // 2]}
    if content == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(other.get(content, bytes(100_000)))
    refused(lambda: open_source(str(path)), path)


def test_far_away_it_is_refused() -> None:
    refused(lambda: open_source("gs://bucket/x.array_record"), "gs://bucket/x.array_record", "copy")


def test_threads_read_the_right_records_with_few_files_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_OPEN", 3)
    for i in range(8):
        write(tmp_path / f"{i}.array_record", [pair(2 * i), pair(2 * i + 1)])
    source = open_source(f"{tmp_path}/{{0..7}}.array_record")
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(8) as pool:
        order = np.random.default_rng(0).permutation(800) % 16
        for i, record in zip(order, pool.map(source.__getitem__, order), strict=True):
            assert record.image == b"\x89PNG %d" % i
    assert len(os.listdir("/proc/self/fd")) <= before + 3


FUZZ = """
import random, sys
from pathlib import Path
from clip_jax.data.example import PairError
from clip_jax.data.sources.records import RecordSource
from clip_jax.errors import UserError
path, chance, errors = Path(sys.argv[1]), random.Random(0), 0
original = path.read_bytes()
right = [RecordSource(str(path))[i] for i in range(20)]
for _ in range(300):
    raw = bytearray(original)
    for _ in range(chance.randint(1, 4)):
        part = chance.choice(((0, 200), (len(raw) - 70_000, len(raw)), (0, len(raw))))
        at = chance.randrange(max(0, part[0]), part[1])
        raw[at : at + 8] = chance.randbytes(min(8, len(raw) - at))
    path.write_bytes(raw)
    try:
        source = RecordSource(str(path))
    except UserError:
        errors += 1
        continue
    for i in range(len(source)):
        try:
            source[i]
        except PairError as error:
            assert error.reason == "unreadable"
            errors += 1
assert errors > 50, errors
"""


def test_no_damage_ends_the_process(tmp_path: Path) -> None:
    path = write(tmp_path / "x.array_record", [pair(i, n=[i] * 500) for i in range(20)])
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]

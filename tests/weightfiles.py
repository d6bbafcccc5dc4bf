"""Files of weights for tests, right and wrong, byte for byte."""

from __future__ import annotations

import json
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from clip_jax.errors import UserError
from clip_jax.models.model_config import CLIPConfig
from clip_jax.weights import library
from clip_jax.weights.tensors import open_tensors
from support import says

W = np.arange(6, dtype=np.float32).reshape(2, 3)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def as_array(tensor: Any) -> np.ndarray:
    """A torch tensor as numpy has it."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_tensors(path) as tensors:
        return dict(tensors)


def refuses(path: Path, *words: object) -> bool:
    """Whether a file is refused, or a tensor of it, by one line that names it and `words`."""
    with pytest.raises(UserError) as error:
        read_all(path)
    return says(error.value, path, *words)


def refuses_in_little_memory(path: Path, *words: object) -> bool:
    """`refuses`, and reading allocates less than 128 MiB on the way."""
    tracemalloc.start()
    try:
        return refuses(path, *words) and tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    def change(edits: list[tuple[int, int]], length: int) -> bytes:
        changed = bytearray(content)
        for at, byte in edits:
            changed[at] = byte
        return bytes(changed[:length])

    place = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    full_length = st.just(len(content))
    return st.builds(
        change,
        st.lists(place, min_size=1, max_size=4),
        st.one_of(full_length, full_length, st.integers(0, len(content))),
    )


def survives(path: Path) -> dict[str, np.ndarray] | None:
    """What a file holds, None where it is refused as it should be."""
    try:
        return read_all(path)
    except UserError as error:
        assert says(error, path)
        return None


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return dict(dtype=dtype, shape=shape, data_offsets=offsets)


def raw(header: Any, data: bytes = W.tobytes(), length: int | None = None) -> bytes:
    text = header if isinstance(header, str) else json.dumps(header)
    size = len(text.encode()) if length is None else length
    return size.to_bytes(8, "little") + text.encode() + data


PAIRS = b"N" + b"q\0h\0\x86" * 64  # a pair of a pair of ...: its hash would take for ever


def number(n: int) -> bytes:
    return pickle.dumps(n, 2)[2:-1]


def text(word: str) -> bytes:
    return b"X" + len(word.encode()).to_bytes(4, "little") + word.encode()


def several(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def named(name: str) -> bytes:
    return f"c{name.replace(' ', chr(10))}\n".encode()


def stored(
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    numel: int = 6,
    key: str = "0",
    kind: str = "torch FloatStorage",
) -> bytes:
    storage = several(text("storage"), named(kind), text(key), text("cpu"), number(numel)) + b"Q"
    sizes = [several(*map(number, values)) for values in (shape, strides)]
    hooks = named("collections OrderedDict") + b")R"
    about = several(storage, number(offset), *sizes, b"\x88", hooks)
    return named("torch._utils _rebuild_tensor_v2") + about + b"R"


def state(**tensors: bytes) -> bytes:
    items = b"".join(text(name) + value for name, value in tensors.items())
    return named("collections OrderedDict") + b")R(" + items + b"u"


def module(**attributes: bytes) -> bytes:
    state = b"".join(text(name) + value for name, value in attributes.items())
    return named("__torch__ M") + b")\x81}(" + state + b"ub"


def archive(
    path: Any, root: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes | str
) -> Any:
    """An archive of torch's of the pickle `root`, whose storage 0 is `W`."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", b"\x80\x02" + root + b".")
        file.writestr("m/data/0", W.tobytes(), compression)
        for name, content in members.items():
            file.writestr(f"m/{name}", content, zipfile.ZIP_DEFLATED)
    return path


CODE = 'class M(Module):\n  __parameters__ = ["w", ]\n  __buffers__ = ["b", ]\n  c : Tensor\n'


def torchscript(path: Path, root: bytes, code: str = CODE) -> Path:
    """An archive of TorchScript's of the pickle `root` and the program `code`."""
    program = {"constants.pkl": b"\x80\x02).", "code/__torch__.py": code}
    return archive(path, root, **program)


def found_in(folder: Path, family: str) -> library.SavedWeights:
    """What the files of a family's folder are."""
    ours = folder / "model.json"
    if not ours.is_file():
        return library.find_weights(folder)
    config = CLIPConfig.from_dict(json.loads(ours.read_text()))
    path = folder / "open_clip_model.safetensors"
    return library.SavedWeights(path, "open_clip", config, library.preprocess_of(config), None)

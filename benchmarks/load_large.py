"""Peak memory of loading a large model from open_clip's safetensors: ViT-bigG-14, 9.5 GiB in fp32.

    python benchmarks/load_large.py [--model NAME]

The file has random values; it is written tensor by tensor into a temporary folder. A fresh process
loads it and prints the time and its peak resident size, compared with the size of the file.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

_BLOCK = 1 << 22  # values that are written at a time, again and again
_LOAD = """
import os, resource, sys, time, warnings
warnings.simplefilter("ignore")
import jax
from flax import nnx
import clip_jax
before = time.perf_counter()
model, _, _ = clip_jax.load(sys.argv[1])
jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
seconds = time.perf_counter() - before
size = os.path.getsize(sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(f"{size / 2**30:.2f} GiB in {seconds:.1f} s; peak {peak / size:.2f} times the file")
"""


def write(name: str, folder: Path) -> Path:
    """Writes a file of random values of an architecture, with its config, and returns it."""
    from clip_jax.models import architectures
    from clip_jax.models.clip import abstract_model, variables
    from clip_jax.weights import arrays, configs
    from clip_jax.weights.param_mapping import leaves

    config = architectures.find_architecture(name)
    ours = dict(arrays.flat(*variables(abstract_model(config))))
    header, end = {}, 0
    for tensor, shape in arrays.tensor_shapes(leaves(config, "open_clip"), ours).items():
        size = 4 * int(np.prod(shape))
        header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = np.random.default_rng(0).standard_normal(_BLOCK).astype(np.float32) * 0.01
    file = folder / "open_clip_model.safetensors"
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for first in range(0, end, block.nbytes):
            out.write(block.tobytes()[: end - first])
    values = {"model_cfg": configs.to_open_clip(config), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    return file


def main() -> None:
    """Writes the file and loads it in a process of its own."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default="ViT-bigG-14")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = write(args.model, Path(folder))
        subprocess.run([sys.executable, "-c", _LOAD, folder, file], check=True)


if __name__ == "__main__":
    main()

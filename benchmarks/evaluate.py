"""Zero-shot evaluation of ViT-B/32, compared with open_clip's loop on the same images and weights.

    python benchmarks/evaluate.py --images 10000
    python benchmarks/evaluate.py --images 10000 --dtype mixed     # compared with bfloat16 autocast

Writes JPEGs of 224² in ten folders named after classes, and random weights as open_clip's file.
Each side is a process of its own. It loads the weights, builds the classifier from the eighteen
templates of CIFAR-10, reads, decodes and encodes every image, and counts the correct answers. The
time includes all of this and compilation, but not imports. The sides alternate; the largest
difference of their logits is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

SIDES = ("open_clip", "clip_jax")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TEMPLATES = [
    f"a {kind}photo of {article} {{}}."
    for kind in ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ")
    for article in ("a", "the", "one")
]


def write_picture(i: int, folder: Path) -> None:
    """Writes one JPEG of 224² with smooth colours and edges, as photographs have."""
    from PIL import Image

    rng = np.random.default_rng(i)
    coarse = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((224, 224), Image.Resampling.BICUBIC)
    tile = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    image.paste(tile.resize((90, 90), Image.Resampling.NEAREST), tuple(rng.integers(0, 130, 2)))
    path = folder / CLASSES[i % len(CLASSES)] / f"{i:06}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)


def prepare(folder: Path, images: int) -> None:
    """Writes the images and the weights, unless they exist."""
    stems = {path.stem for path in (folder / "images").glob("*/*.jpg")}
    missing = [i for i in range(images) if f"{i:06}" not in stems]
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(write_picture, folder=folder / "images"), missing, chunksize=64))
    weights = folder / "open_clip_model.safetensors"
    if not weights.is_file():
        import peers

        peers.import_torchvision()
        import open_clip
        from safetensors.torch import save_file

        model = open_clip.create_model("ViT-B-32-quickgelu")
        save_file(model.state_dict(), weights)


def ours(folder: Path, dtype: str, batch_size: int) -> tuple[float, np.ndarray]:
    """Seconds, and the cosines of every image with the classes."""
    import jax
    from flax import nnx

    from clip_jax import tokenizers
    from clip_jax.data.sources import open_source
    from clip_jax.distributed import sharding
    from clip_jax.evaluation.features import Encoder, classifier
    from clip_jax.models.clip import abstract_model, specs_of
    from clip_jax.weights import library

    jax.devices()
    began = time.monotonic()
    saved = library.find_weights(folder / "open_clip_model.safetensors", "ViT-B/32")
    mesh = sharding.make_mesh({"data": -1})
    variables = library.read_variables(saved)
    variables = jax.device_put(
        variables, sharding.shardings(variables, specs_of(saved.config), mesh)
    )
    graph = nnx.graphdef(abstract_model(saved.config, dtype))
    tokenizer = tokenizers.load("clip", 77)
    encoder = Encoder(graph, variables, mesh, batch_size, tokenizer.pad_id)
    source = open_source(str(folder / "images"))
    weights = classifier(encoder, tokenizer, CLASSES, TEMPLATES)
    images = encoder.images(source, saved.preprocess)
    cosines = images @ weights.T
    cosines.argmax(axis=1)
    return time.monotonic() - began, cosines


def theirs(folder: Path, dtype: str, batch_size: int) -> tuple[float, np.ndarray]:
    """The same with open_clip and torch's loader, as in open_clip_train's zero-shot evaluation."""
    import peers

    peers.import_torchvision()
    import open_clip
    import torch
    from PIL import Image

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, transform) -> None:
            self.paths = sorted((folder / "images").glob("*/*.jpg"))
            self.transform = transform

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, i: int):
            path = self.paths[i]
            with Image.open(path) as image:
                return self.transform(image), CLASSES.index(path.parent.name)

    began = time.monotonic()
    model, _, transform = open_clip.create_model_and_transforms(
        "ViT-B-32-quickgelu", pretrained=str(folder / "open_clip_model.safetensors")
    )
    model.eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    loader = torch.utils.data.DataLoader(Pictures(transform), batch_size, num_workers=2)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype != "float32")
    with torch.inference_mode(), autocast:
        texts = [template.format(name) for name in CLASSES for template in TEMPLATES]
        features = model.encode_text(tokenizer(texts), normalize=True)
        weights = features.reshape(len(CLASSES), len(TEMPLATES), -1).mean(dim=1)
        weights = weights / weights.norm(dim=-1, keepdim=True)
        right, blocks = 0, []
        for pixels, target in loader:
            cosines = model.encode_image(pixels, normalize=True) @ weights.T
            right += int((cosines.argmax(dim=1) == target).sum())
            blocks.append(cosines.float())
    return time.monotonic() - began, torch.cat(blocks).numpy()


def main() -> None:
    """Runs the command."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--images", type=int, default=2_000)
    p.add_argument("--dtype", choices=("float32", "mixed"), default="float32")
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--repeats", type=int, default=1)
    p.add_argument("--folder", type=Path, default=Path("/tmp/clip_jax_evaluate"))
    p.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = p.parse_args()
    folder = args.folder / str(args.images)
    if args.side:
        run = ours if args.side == "clip_jax" else theirs
        seconds, cosines = run(folder, args.dtype, args.batch_size)
        np.save(folder / f"{args.side}.npy", cosines)
        print(json.dumps({"seconds": seconds}))
        return
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder, args.images)
    best: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(args.repeats):
        for side in SIDES:
            command = [sys.executable, *sys.argv, "--side", side]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            measured = json.loads(out.splitlines()[-1])
            best[side].append(measured["seconds"])
            rate = args.images / measured["seconds"]
            print(f"{side:10} {measured['seconds']:7.1f} s  {rate:6.1f} images/s", flush=True)
    one, other = (np.load(folder / f"{side}.npy") for side in SIDES)
    print(f"cosines differ by at most {np.abs(one - other).max():.1e}")
    print(f"clip_jax is {min(best['open_clip']) / min(best['clip_jax']):.2f} times as fast")


if __name__ == "__main__":
    main()

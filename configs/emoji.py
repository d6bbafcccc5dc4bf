"""A larger CLIP on the embedded emoji, trained longer than the quickstart.

    python -m clip_jax.main --config configs/emoji.py

Hardware: Two CPU cores.
Time:     25 minutes (measured: 25 min 2 s on a machine shared with others).
Memory:   2.5 GiB (measured).
Score:    Top-1 on unseen drawings 41.3 % of 1,914 labels, on unseen concepts 16.9 % of 191
          (measured, means of three seeds; docs/benchmarks.md).
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    c.workdir = "runs/emoji"
    c.steps = 2_400
    c.model.vision.update(image_size=64, patch_size=16, width=256, layers=4, heads=4, stem=128)
    c.model.text.width = 256
    c.data.captions = ("{name}", "{name}", "{name}, {keywords}")
    c.data.token_dropout = 0.1
    c.data.augment.update(
        crop_scale=(0.5, 1.0), crop_ratio=(0.85, 1.18), rotate=8.0, color=0.4, hue=0.03, gray=0.1
    )
    c.optimizer.warmup_steps = 100
    c.optimizer.weight_decay = 0.1
    c.log.every = 50
    c.checkpoint.every = 500
    c.evaluate.every = 800
    return c

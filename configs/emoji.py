"""A larger CLIP on the embedded emoji, trained longer than the quickstart.

    python -m clip_jax.main --config configs/emoji.py

Hardware: two CPU cores.
Time:     about half an hour (estimated from its first steps: 300 images/s).
Memory:   not measured; configs/quickstart.py, half its size, takes 1.7 GiB.
Score:    not measured to the end; after a quarter of it top-1 is 7.4 % on unseen drawings and
          6.2 % on unseen concepts (docs/benchmarks.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.workdir = "runs/emoji"
    c.batch_size = 128
    c.steps = 4_000
    c.dtype = "float32"  # a CPU gains nothing from bfloat16
    c.remat = "none"
    c.tokenizer = "sentencepiece:embedded:emoji/emoji.model"
    c.model.embed_dim = 256
    # 64 pixels reduced to 32: less to compute, and what is left is alike between drawings
    c.model.vision.update(
        image_size=32,
        patch_size=8,
        width=256,
        layers=4,
        heads=4,
        stem=64,
        pool="mean",
        patch_dropout=0.25,
        mean=(0.8, 0.77, 0.72),
        std=(0.29, 0.28, 0.33),
    )
    c.model.text.update(vocab_size=2_050, context_length=16, width=256, layers=1, heads=4)

    c.data.train = "embedded:emoji/train-*.tar"
    c.data.cache_mib = 256
    c.data.captions = ("{name}", "an emoji of {name}", "{name}, {keywords}", "{keywords}")
    c.data.augment.update(
        crop_scale=(0.5, 1.0),
        crop_ratio=(0.85, 1.18),
        flip=0.5,
        rotate=10.0,
        color=0.4,
        hue=0.04,
        gray=0.1,
    )

    c.optimizer.learning_rate = 8e-4
    c.optimizer.warmup_steps = 100
    c.optimizer.weight_decay = 0.2
    c.optimizer.clip_norm = 1.0

    c.log.every = 50
    c.checkpoint.every = 500
    c.evaluate.every = 1_000
    c.evaluate.batch_size = 512
    c.evaluate.templates = ("{}", "an emoji of {}")
    c.evaluate.caption = "{name}, {keywords}"
    for name in ("unseen_drawing", "unseen_concept"):
        c.evaluate.sets[name] = ConfigDict(
            {
                "data": f"embedded:emoji/{name}-*.tar",
                "labels": "embedded:emoji/labels.json",
                "label": "name",
            }
        )
    return c

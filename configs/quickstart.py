"""A small CLIP on the embedded emoji: everything from training to the report within minutes.

    python -m clip_jax.main --config configs/quickstart.py

Hardware: Two CPU cores.
Time:     5 minutes, including compilation and two evaluations (measured: 4 min 45 s).
Memory:   1.7 GiB (measured).
Score:    Top-1 on unseen drawings 30.7 % of 1,914 labels, on unseen concepts 15.0 % of 191
          (measured, one seed; docs/benchmarks.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.workdir = "runs/quickstart"
    c.batch_size = 128
    c.steps = 1_200
    c.dtype = "mixed"
    c.remat = "dots"  # faster than keeping everything: less memory traffic
    c.model.embed_dim = 256
    # 64 pixels reduced to 32: less to compute, and drawings by different teams look more alike
    c.model.vision.update(
        image_size=32,
        patch_size=8,
        width=192,
        layers=3,
        heads=3,
        stem=64,
        pool="mean",
        mean=(0.8, 0.77, 0.72),
        std=(0.29, 0.28, 0.33),
    )
    # a bag of whole words (CLIP's vocabulary has most of them): unseen names consist of seen words
    c.model.text.update(context_length=16, width=192, layers=0)

    c.data.train = "embedded:emoji/train-*.tar"
    c.data.cache_mib = 256
    c.data.captions = ("{name}", "{name}", "{name}", "{name}, {keywords}")
    c.data.augment.update(
        crop_scale=(0.6, 1.0), crop_ratio=(0.9, 1.1), flip=0.5, color=0.3, hue=0.02, gray=0.05
    )

    c.optimizer.learning_rate = 2e-3
    c.optimizer.muon_learning_rate = 0.01
    c.optimizer.warmup_steps = 60
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip_norm = 1.0

    c.log.every = 25
    c.checkpoint.every = 250
    c.evaluate.every = 600
    c.evaluate.batch_size = 128
    c.evaluate.templates = ("{}",)  # the names alone, like most captions
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

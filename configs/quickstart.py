"""Quickstart."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.workdir = "runs/quickstart"
    c.batch_size = 256
    c.steps = 400
    c.dtype = "float32"
    c.remat = "none"
    c.tokenizer = "sentencepiece:embedded:emoji/emoji.model"
    c.model.embed_dim = 256
    c.model.vision.update(
        image_size=48, patch_size=8, width=256, layers=4, heads=4, patch_dropout=0.5
    )
    c.model.text.update(vocab_size=2050, context_length=20, width=128, layers=2, heads=2)

    c.data.train = "embedded:emoji/train-*.tar"
    c.data.captions = (
        "{name}",
        "{name}",
        "an emoji of {name}",
        "{name}, {keywords}",
        "{keywords}",
    )
    c.data.augment.update(
        crop_scale=(0.5, 1.0),
        crop_ratio=(0.8, 1.25),
        flip=0.5,
        rotate=15.0,
        color=0.4,
        hue=0.05,
        gray=0.1,
    )
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 50
    c.optimizer.clip_norm = 1.0
    c.log.every = 10
    c.checkpoint.every = 100
    c.evaluate.every = 200
    c.evaluate.batch_size = 512
    c.evaluate.templates = ("{}", "an emoji of {}", "a picture of {}", "a drawing of {}")
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

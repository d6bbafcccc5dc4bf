"""VirTex with a ResNet-50 (Desai and Johnson 2021): captions, predicted forward and backward.

    python -m clip_jax.tokenizers.sentencepiece captions.txt virtex.model --vocab-size 10000
    python -m clip_jax.main --config configs/virtex_rn50.py --workdir runs/virtex \\
        --config.data.train='/data/{0000..0999}.tar' \\
        --config.tokenizer=sentencepiece:virtex.model

The file `captions.txt` has a caption on each line. VirTex trained on the captions of COCO.

Hardware: TPU or GPU. The batch of 256 is global and is split over all devices.
Time:     500,000 steps. On 256 v5e chips, a row each: 17 ms per step, at least 2.3 hours (591
          chip-hours; planned).
Memory:   2.07 GiB of a v5e's 15.75, with 198,078,323 parameters (planned).
Score:    Not measured.
Measured here: the number of parameters. Planned means `--mode=plan --topology=v5e:16x16`: compiled,
not run. The sizes, the batch, the optimizer's values and the schedule are the
paper's. Four things differ: there is no Lookahead and no dropout, the decoder's LayerNorms come
before its parts, and the image tower is CLIP's ResNet-50, whose attention pool is frozen: probes
use the mean of the 2,048 features of its places. The augmentation is our own choice.
"""

from ml_collections import ConfigDict

from configs import common

PIECES = 10_000


def get_config() -> ConfigDict:
    c = common.get_config("RN50")
    c.workdir = "runs/virtex_rn50"
    c.tokenizer = ""  # sentencepiece:virtex.model
    # The text tower takes no part: a bag of words is the smallest.
    c.model.text.update(vocab_size=PIECES + 2, context_length=30, width=64, layers=0, heads=1)
    decoder = dict(width=2048, layers=1, heads=32, both_ways=True)
    c.model.heads = ConfigDict(dict(decoder=decoder))
    c.objective.name = "captioning"
    c.batch_size = 256
    c.steps = 500_000
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.groups = ({"pattern": "vision/.*", "learning_rate": 200.0},)
    c.optimizer.b1 = 0.9
    c.optimizer.weight_decay = 1e-4
    c.optimizer.warmup_steps = 10_000
    c.optimizer.clip_norm = 10.0
    c.data.augment.update(crop_scale=(0.2, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5, color=0.4)
    c.evaluate.suite = ("linear_probe",)
    return c

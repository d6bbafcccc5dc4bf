"""ConVIRT with a ResNet-50 and a BERT (Zhang et al. 2020): contrast of images and sentences.

    python -m clip_jax.main --config configs/convirt_rn50.py --workdir runs/convirt \\
        --config.data.train='/data/{0000..0999}.tar' \\
        --config.tokenizer=wordpiece:bert-base-uncased/vocab.txt \\
        --config.weights.text=bert-base-uncased

The folder bert-base-uncased holds the files of transformers. Of each caption, such as a radiology
report, one sentence is drawn. docs/concepts.md compares ConVIRT's options with CLIP's.

Hardware: TPU or GPU. The batch of 1,024 is global and is split over all devices.
Time:     200,000 steps. On 256 v5e chips, four rows each: 27 ms per step, at least 1.5 hours (377
          chip-hours; planned).
Memory:   2.38 GiB of a v5e's 15.75, with 147,669,089 parameters (planned).
Score:    Not measured.
Measured here: the number of parameters. Planned means `--mode=plan --topology=v5e:16x16`: compiled,
not run. The weight of a direction, the temperature, both projections, the crop and
the affine maps are the paper's. The strengths of the colours and of the blur, the batch, the
optimizer and the steps are our own choice. The image tower is CLIP's ResNet-50.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("RN50")
    c.workdir = "runs/convirt_rn50"
    c.tokenizer = ""  # wordpiece:bert-base-uncased/vocab.txt
    c.model.embed_dim = 512
    c.model.projection_width = 512
    c.model.temperature = 0.1
    c.model.text = ConfigDict(dict(kind="bert", context_length=64, pool="mean", activation="gelu"))
    c.loss.image_weight = 0.75
    c.batch_size = 1_024
    c.steps = 200_000
    c.optimizer.freeze = "logit_scale"
    c.optimizer.learning_rate = 1e-4
    c.optimizer.weight_decay = 0.01
    c.data.captions = ("{caption:sentence}",)
    c.data.augment.update(
        crop_scale=(0.6, 1.0),
        flip=0.5,
        rotate=20.0,
        translate=0.1,
        zoom=(0.95, 1.05),
        color=0.4,
        blur=(0.1, 3.0),
    )
    return c

"""ALIGN (Jia et al. 2021) with an EfficientNet-B7 and a BERT-Base, on your own pairs.

    python -m clip_jax.main --config configs/align_base.py --workdir runs/align_base \\
        --config.data.train='/data/{00000..41407}.tar' --config.tokenizer=wordpiece:vocab.txt

`vocab.txt` is the vocabulary of BERT, one token per line; it comes with the released weights.
Another EfficientNet is `c.model = ConfigDict(align("b3", BertConfig()).to_dict())`, with `align` of
`clip_jax.models.architectures.efficientnet`.
To start from released weights add `--config.weights.path=FOLDER`.

LAMB, label smoothing and the linear decay are those of the paper. One thing differs: crops are
squares of the undistorted image, where the paper squashes each image to 346 × 346 pixels first.

Hardware: TPU or GPU. The batch of 16,384 is global and is split over all devices. Batch statistics
          are those of the global batch.
Time:     Not measured. The paper trains 1.2 M steps on 1,024 TPU v3 cores.
          On 256 v5e chips: 591 ms per step, at least 8.2 days (50,432 chip-hours; planned).
Memory:   Parameters and LAMB's moments take 2.1 GB (12 bytes for each of 172,117,841 parameters),
          divided by the devices; with activations 5.82 GiB of a v5e's 15.75 (planned).
Score:    Not measured.
Measured here: the number of parameters. Planned means `--mode=plan --topology=v5e:16x16`: compiled,
not run.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("align-base")
    c.workdir = "runs/align_base"
    c.mesh.update(data=1, fsdp=-1)  # shards parameters and optimizer over all devices
    c.tokenizer = ""  # wordpiece:vocab.txt
    c.batch_size = 16_384
    c.steps = 1_200_000
    c.data.augment.crop_scale = (0.7, 0.7)  # 289² of 346²
    c.data.augment.flip = 0.5
    c.loss.label_smoothing = 0.1
    c.optimizer.name = "lamb"
    c.optimizer.schedule = "linear"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup_steps = 10_000
    c.optimizer.weight_decay = 1e-5
    return c

"""ALIGN (Jia et al. 2021) of an EfficientNet-B7 and a BERT-Base, on your own pairs.

    python -m clip_jax.main --config configs/align_base.py --workdir runs/align_base \\
        --config.data.train='/data/{00000..41407}.tar' --config.tokenizer=wordpiece:vocab.txt

`vocab.txt` is BERT's, a token a line; it comes with the released weights. Another EfficientNet is
`c.model = ConfigDict(zoo.align("b3", zoo.BertConfig()).to_dict())`. To go on from released weights
add `--config.weights.path=FOLDER`.

LAMB, the label smoothing and the linear decay are the paper's. What differs: square crops of the
undistorted picture in place of those of a picture squashed to 346 × 346 pixels.

Hardware: TPU or GPU; the batch of 16,384 is global and is split over all devices. Batch statistics
          are those of the global batch.
Time:     not measured; the paper trains 1.2 M steps on 1,024 TPU v3 cores.
          Here: on 256 v5e chips 591 ms a step, at least 8.2 days (50,432 chip-hours; planned).
Memory:   parameters and LAMB's moments take 2.1 GB (12 bytes for each of 172,117,841 parameters),
          divided by the devices; with activations 5.82 GiB of a v5e's 15.75 (planned).
Score:    not measured.
Measured here: the number of parameters. Planned with
`--mode=plan --topology=v5e:16x16`: compiled, not run.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("align-base")
    c.workdir = "runs/align_base"
    c.mesh.update(data=1, fsdp=-1)  # parameters and optimizer over all devices
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

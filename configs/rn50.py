"""CLIP RN50 as in the paper (tables 18 to 20), on your own pairs.

    python -m clip_jax.main --config configs/rn50.py --workdir runs/rn50 \\
        --config.data.train='/data/{00000..41407}.tar'

RN101, RN50x4, RN50x16 and RN50x64 have their own configs beside this one.

Hardware: TPU or GPU. The batch of 32,768 is global and is split over all devices. Where they cannot
          hold it, `config.accumulate=16` processes it in 16 parts, for example. Batch statistics
          are those of the global batch, or of such a part.
Time:     32 epochs of 400 M pairs. The paper gives 18 days on 592 V100 for RN50x64, the largest
          model.
          On 256 v5e chips: 152 ms per step, at least 16 hours (4,222 chip-hours; planned).
Memory:   Parameters and Adam's moments take 1.2 GB (12 bytes for each of 102,007,137 parameters),
          divided by the devices; with activations 3.77 GiB of a v5e's 15.75 (planned).
Score:    open_clip measures 59.8 % ImageNet zero-shot top-1 for the released weights.
Measured here: the number of parameters. Planned means `--mode=plan --topology=v5e:16x16`: compiled,
not run.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(model: str = "RN50") -> ConfigDict:
    c = common.get_config(model)
    c.workdir = "runs/rn50"
    c.mesh.update(data=1, fsdp=-1)  # shards parameters and optimizer over all devices
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    return c

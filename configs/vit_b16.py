"""CLIP ViT-B/16 as in the paper (tables 18 to 20), on your own pairs.

    python -m clip_jax.main --config configs/vit_b16.py --workdir runs/vit_b16 \\
        --config.data.train='/data/{00000..41407}.tar'

Hardware: TPU or GPU. The batch of 32,768 is global and is split over all devices. Where they cannot
          hold it, `config.accumulate=16` processes it in 16 parts, for example.
          `config.remat=full` and bfloat16 are on.
Time:     32 epochs of 400 M pairs. The paper gives 12 days on 256 V100 for ViT-L/14, the largest
          model, and no time for this one.
          On 256 v5e chips: 193 ms per step, at least 21 hours (5,361 chip-hours; planned).
          On 8 H100 with a batch of 8,192: at least 204 ms per step (planned).
Memory:   Parameters and Adam's moments take 1.8 GB (12 bytes for each of 149,620,737 parameters),
          divided by the devices; with activations 0.94 GiB of a v5e's 15.75, 7.03 of the
          59.3 of one of the H100s (planned).
Score:    open_clip measures 68.3 % ImageNet zero-shot top-1 for the released weights.
Measured here: the number of parameters. Planned means `--mode=plan --topology=v5e:16x16` (or
h100:8, h100:1): compiled, not run.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("ViT-B/16")
    c.workdir = "runs/vit_b16"
    c.mesh.update(data=1, fsdp=-1)  # shards parameters and optimizer over all devices
    return c

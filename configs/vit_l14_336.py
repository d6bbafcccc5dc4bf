"""CLIP ViT-L/14@336px as in the paper (tables 18 to 20), on your own pairs.

    python -m clip_jax.main --config configs/vit_l14_336.py --workdir runs/vit_l14_336 \\
        --config.data.train='/data/{00000..41407}.tar'

Hardware: TPU or GPU. The batch of 32,768 is global and is split over all devices. Where they cannot
          hold it, `config.accumulate=16` processes it in 16 parts, for example.
          `config.remat=full` and bfloat16 are on.
Time:     One more epoch after configs/vit_l14.py, at the higher resolution; the paper gives no
          time.
          On 256 v5e chips: 1,990 ms per step, at least 7 hours (1,727 chip-hours; planned).
          On one H100 with a batch of 2,048 and `config.remat=full:2`: at least 4.2 s per step
          (planned).
Memory:   Parameters and Adam's moments take 5.1 GB (12 bytes for each of 427,944,193 parameters),
          divided by the devices; with activations 4.52 GiB of a v5e's 15.75, 50.6 of an H100's
          59.3 (planned).
Score:    open_clip measures 76.6 % ImageNet zero-shot top-1 for the released weights.
Measured here: the number of parameters. Planned means `--mode=plan --topology=v5e:16x16` (or
h100:8, h100:1): compiled, not run.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("ViT-L/14@336px")
    c.workdir = "runs/vit_l14_336"
    c.mesh.update(data=1, fsdp=-1)  # shards parameters and optimizer over all devices
    c.optimizer.learning_rate = 2e-5
    c.steps = 12_207  # one epoch of 400 M pairs
    return c

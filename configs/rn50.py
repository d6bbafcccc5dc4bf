"""CLIP RN50 as in the paper (tables 18 to 20), on your own pairs; the other ResNets by name.

    python -m clip_jax.main --config configs/rn50.py --workdir runs/rn50 \\
        --config.data.train='/data/{00000..41407}.tar'

RN101, RN50x4, RN50x16 and RN50x64 differ by `common.get_config("RN50x4")` and the peak learning
rate: 5e-4, 5e-4, 4e-4 and 3.6e-4 (table 20).

Hardware: TPU or GPU; the batch of 32,768 is global and is split over all devices, and
`config.accumulate=16`, say, takes it through the towers in 16 parts where they cannot hold it.
Batch statistics are those of the global batch, or of such a part.
Time:     32 epochs of 400 M pairs; the paper gives 18 days on 592 V100 for RN50x64, the largest.
Memory:   parameters and Adam's moments take 1.2 GB (12 bytes for each of 102,007,137 parameters),
          divided by `config.mesh.fsdp`; activations come on top and were not measured.
Score:    ImageNet zero-shot top-1 59.8 % is what open_clip measures for the released weights.
Measured here: the number of parameters. This schedule was not run by us.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("RN50")
    c.workdir = "runs/rn50"
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    return c

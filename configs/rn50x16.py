"""CLIP RN50x16 as in the paper (tables 18 to 20), on your own pairs.

    python -m clip_jax.main --config configs/rn50x16.py --workdir runs/rn50x16 \\
        --config.data.train='/data/{00000..41407}.tar'

Hardware: TPU or GPU; see configs/rn50.py.
Time:     not measured; the paper gives 18 days on 592 V100 for RN50x64.
Memory:   not measured: ask `--mode=plan`.
Score:    ImageNet zero-shot top-1 70.7 % is what open_clip measures for the released weights.
Measured here: the number of parameters, 290,979,217. This schedule was not run by us.
"""

from ml_collections import ConfigDict

from configs import rn50


def get_config() -> ConfigDict:
    c = rn50.get_config("RN50x16")
    c.workdir = "runs/rn50x16"
    c.accumulate = 4
    c.optimizer.learning_rate = 4e-4
    return c

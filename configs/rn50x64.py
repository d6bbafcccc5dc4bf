"""CLIP RN50x64 as in the paper (tables 18 to 20), on your own pairs.

    python -m clip_jax.main --config configs/rn50x64.py --workdir runs/rn50x64 \\
        --config.data.train='/data/{00000..41407}.tar'

Hardware: TPU or GPU; see configs/rn50.py.
Time:     Not measured. The paper gives 18 days on 592 V100 for RN50x64.
          On 256 v5e chips: 4,263 ms per step, at least 19.3 days (118,417 chip-hours; planned).
Memory:   13.57 GiB of a v5e's 15.75, with parameters and optimizer over all 256 chips (planned).
Score:    open_clip measures 73.9 % ImageNet zero-shot top-1 for the released weights.
Measured here: the number of parameters, 623,258,305. Planned means
`--mode=plan --topology=v5e:16x16`: compiled, not run.
"""

from ml_collections import ConfigDict

from configs import rn50


def get_config() -> ConfigDict:
    c = rn50.get_config("RN50x64")
    c.workdir = "runs/rn50x64"
    c.accumulate = 4
    c.optimizer.learning_rate = 3.6e-4
    return c

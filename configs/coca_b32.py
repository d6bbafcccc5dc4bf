"""CoCa ViT-B/32 (Yu et al. 2022) in open_clip's sizes: contrast and captions, on your own pairs.

    python -m clip_jax.main --config configs/coca_b32.py --workdir runs/coca_b32 \\
        --config.data.train='/data/{00000..41407}.tar'

To start from open_clip's weights add `--config.weights.path=FOLDER`. With the trained model
`python -m clip_jax classify --caption` writes captions, and `convert --to open_clip` writes
open_clip's files.

Hardware: TPU or GPU. The batch of 32,768 is global and is split over all devices.
Time:     PLAN_TIME
Memory:   Parameters and Adam's moments take 3.0 GB (12 bytes for each of 253,560,065 parameters),
          divided by `config.mesh.fsdp`. PLAN_MEMORY
Score:    Not measured.
Measured here: the number of parameters. The optimizer's values are those of CLIP's paper; this
schedule was not run.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("coca_ViT-B-32")
    c.workdir = "runs/coca_b32"
    c.mesh.update(data=1, fsdp=-1)  # shards parameters and optimizer over all devices
    c.objective.name = "coca"
    return c

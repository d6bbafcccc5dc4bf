"""CoCa ViT-B/32 (Yu et al. 2022) in open_clip's sizes: contrast and captions, on your own pairs.

    python -m clip_jax.main --config configs/coca_b32.py --workdir runs/coca_b32 \\
        --config.data.train='/data/{00000..41407}.tar'

To start from open_clip's weights add `--config.weights.path=FOLDER`. With the trained model
`python -m clip_jax classify --caption` writes captions, and `convert --to open_clip` writes
open_clip's files.

Hardware: TPU or GPU. The batch of 32,768 is global and is split over all devices.
Time:     32 epochs of 400 M pairs, as CLIP's paper trains.
          On 256 v5e chips: 252 ms per step, at least 27 hours (7,005 chip-hours; planned).
Memory:   Parameters and Adam's moments take 3.0 GB (12 bytes for each of 253,560,065 parameters),
          divided by the devices; with activations 1.24 GiB of a v5e's 15.75 (planned).
Score:    Not measured.
Measured here: the number of parameters. Planned means `--mode=plan --topology=v5e:16x16`: compiled,
not run. The optimizer's values are those of CLIP's paper.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("coca_ViT-B-32")
    c.workdir = "runs/coca_b32"
    c.mesh.update(data=1, fsdp=-1)  # shards parameters and optimizer over all devices
    c.objective.name = "coca"
    return c

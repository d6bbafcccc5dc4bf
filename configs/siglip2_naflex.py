"""SigLIP 2 NaFlex B/16 (Tschannen et al. 2025) on your own pairs: images keep their shapes.

    python -m clip_jax.main --config configs/siglip2_naflex.py --workdir runs/siglip2_naflex \\
        --config.data.train='/data/{00000..41407}.tar' \\
        --config.tokenizer=huggingface:siglip2-base-patch16-naflex

The tokenizer is that of the released model's folder, with `pip install 'clip_jax[tokenizers]'`. To
start from the released weights add `--config.weights.path=siglip2-base-patch16-naflex`. Every
image is resized to as many patches of 16 pixels as `model.vision.max_num_patches` lets it have. A
random crop has the shape of its image. The paper draws the number of patches for each batch:
`--config.model.vision.max_num_patches=1024
--config.data.augment.num_patches='(128,256,576,784,1024)'`.

Hardware: TPU or GPU. The batch of 32,768 is global and is split over all devices.
Time:     390,625 steps. On 256 v5e chips, 128 rows each: 303 ms per step, at least 1.4 days (8,425
          chip-hours; planned).
Memory:   2.82 GiB of a v5e's 15.75, with 375,234,050 parameters (planned).
Score:    Not measured.
Measured here: the number of parameters. Planned means `--mode=plan --topology=v5e:16x16`: compiled,
not run. The loss, the shapes and the tokens of a text are the paper's, which draws the most patches
anew for each batch, distils and writes captions as well. The learning rate and the weight decay are
our own choice.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("siglip2-b16-naflex")
    c.workdir = "runs/siglip2_naflex"
    c.mesh.update(data=1, fsdp=-1)  # shards parameters and optimizer over all devices
    c.tokenizer = ""  # huggingface:FOLDER
    c.optimizer.learning_rate = 1e-3
    c.optimizer.b2 = 0.95
    c.optimizer.weight_decay = 1e-4
    return c

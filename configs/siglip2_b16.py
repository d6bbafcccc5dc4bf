"""SigLIP 2 B/16 (Tschannen et al. 2025) at 256 pixels, with the sigmoid loss, on your own pairs.

    python -m clip_jax.main --config configs/siglip2_b16.py --workdir runs/siglip2_b16 \\
        --config.data.train='/data/{00000..41407}.tar' \\
        --config.tokenizer=huggingface:siglip2-base-patch16-256

The tokenizer is that of the released model's folder, with `pip install 'clip_jax[tokenizers]'`. To
start from the released weights add `--config.weights.path=siglip2-base-patch16-256`.

Hardware: TPU or GPU. The batch of 32,768 is global and is split over all devices.
Time:     Not measured and not planned.
Memory:   Not measured and not planned.
Score:    Not measured.
Measured here: nothing. The paper's model also distils and writes captions, which this config does
not. The learning rate and the weight decay are our own choice.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("siglip2-b16-256")
    c.workdir = "runs/siglip2_b16"
    c.mesh.update(data=1, fsdp=-1)  # shards parameters and optimizer over all devices
    c.tokenizer = ""  # huggingface:FOLDER
    c.optimizer.learning_rate = 1e-3
    c.optimizer.b2 = 0.95
    c.optimizer.weight_decay = 1e-4
    return c

"""SigLIP B/16 (Zhai et al. 2023), with the sigmoid loss, on your own pairs.

    python -m clip_jax.main --config configs/siglip_b16.py --workdir runs/siglip_b16 \\
        --config.data.train='/data/{00000..41407}.tar' --config.tokenizer=siglip:spiece.model

The tokenizer's file `spiece.model` comes with the released weights. To train one of your own use
`python -m clip_jax.tokenizers.sentencepiece`. To start from released weights add
`--config.weights.path=FOLDER`.

Hardware: TPU or GPU. The batch of 32,768 is global and is split over all devices.
Time:     Not measured.
Memory:   Parameters and Adam's moments take 2.4 GB (12 bytes for each of 203,155,970 parameters),
          divided by `config.mesh.fsdp`. Activations are not included and were not measured.
Score:    Not measured.
Measured here: the number of parameters. The learning rate and the weight decay are our own choice;
this schedule was not run.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("siglip-b16")
    c.workdir = "runs/siglip_b16"
    c.mesh.update(data=1, fsdp=-1)  # shards parameters and optimizer over all devices
    c.tokenizer = ""  # siglip:spiece.model
    c.optimizer.learning_rate = 1e-3
    c.optimizer.b2 = 0.95
    c.optimizer.weight_decay = 1e-4
    return c

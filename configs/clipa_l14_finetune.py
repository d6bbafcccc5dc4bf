"""The second stage of CLIPA L/14 (Li et al. 2023, arXiv:2305.07017): images of 224 pixels.

    python -m clip_jax.main --config configs/clipa_l14_finetune.py \\
        --config.weights.path=runs/clipa_l14 --config.data.train='/data/{00000..41407}.tar' \\
        --config.tokenizer=wordpiece:vocab.txt

It starts from the run of `configs/clipa_l14.py`, whose positions are resized to these images and to
texts of 32 tokens.

Hardware: TPU or GPU. The batch of 8,192 is global and is split over all devices.
Time:     Not measured. 16,000 steps are 131 million pairs.
Memory:   Not measured.
Score:    Not measured.
Measured here: nothing. The batch size, the learning rate and the number of pairs are CLIPA's, which
we do not know to be those of its L/14. The sizes are those of the released model. Warm-up and
weight decay are CLIP's.
"""

from ml_collections import ConfigDict

from configs import clipa_l14, common


def get_config() -> ConfigDict:
    c = clipa_l14.get_config()
    c.workdir = "runs/clipa_l14_finetune"
    c.model = common.get_config("ViT-L-14-CLIPA").model
    c.weights.resize = True
    c.batch_size = 8_192
    c.steps = 16_000
    c.optimizer.learning_rate = 2.56e-5
    return c

"""CLIPA L/14 (Li et al. 2023, arXiv:2305.07017): small images and short texts, on your own pairs.

    python -m clip_jax.main --config configs/clipa_l14.py --workdir runs/clipa_l14 \\
        --config.data.train='/data/{00000..41407}.tar' --config.tokenizer=wordpiece:vocab.txt

`vocab.txt` is that of `bert-base-uncased`. Afterwards `configs/clipa_l14_finetune.py` trains the
model for a short while on larger images and longer texts.

An image of 112 pixels has 64 patches in place of 256, a text 16 tokens in place of 32. The paper
chooses the tokens by syntax: `--config.data.long_captions=syntax`, which needs a tagger that is
downloaded apart (docs/data.md); here they are random ones in their order.

Hardware: TPU or GPU. The batch of 65,536 is global and is split over all devices.
Time:     Not measured. 39,062 steps are 2.56 billion pairs.
Memory:   Not measured.
Score:    Not measured.
Measured here: nothing. The sizes, the batch size, the learning rate and b2 are CLIPA's, which we do
not know to be those of its L/14; warm-up and weight decay are CLIP's. We have no source for the
number of steps.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("ViT-L-14-CLIPA")
    c.workdir = "runs/clipa_l14"
    c.mesh.update(data=1, fsdp=-1)  # shards parameters and optimizer over all devices
    c.batch_size = 65_536
    c.steps = 39_062
    c.tokenizer = ""  # wordpiece:vocab.txt
    c.model.vision.image_size = 112
    c.model.text.context_length = 16
    c.data.long_captions = "random"
    c.optimizer.learning_rate = 2.048e-3
    c.optimizer.b2 = 0.95
    return c

"""ICMLM with a ResNet-50 (Sariyildiz et al. 2020): masked words from image and text.

    python -m clip_jax.main --config configs/icmlm_rn50.py --workdir runs/icmlm \\
        --config.data.train='/data/{0000..0999}.tar' \\
        --config.tokenizer=wordpiece:bert-base-uncased/vocab.txt \\
        --config.weights.text=bert-base-uncased

The text tower is a BERT-base, which stays as it is: the folder holds the files of transformers.
Of each caption one word is masked; blocks of a Transformer over the places of the image and the
tokens predict it. For ICMLM's other model set `config.model.heads.masked_words.fusion=att_fc`.

Hardware: TPU or GPU. The batch of 512 is global and is split over all devices.
Time:     500,000 steps. On 256 v5e chips, two rows each: 18 ms per step, at least 2.4 hours (627
          chip-hours; planned).
Memory:   2.16 GiB of a v5e's 15.75, with 219,684,565 parameters, of which the BERT's 110 M do not
          learn (planned).
Score:    Not measured.
Measured here: the number of parameters. Planned means `--mode=plan --topology=v5e:16x16`: compiled,
not run. The paper masks nouns, adjectives and verbs that are among the tags of its
data; here any word can be masked. Tags are the words of the caption. The sizes of the head, the
weight of the tags, the optimizer and the steps are our own choice.
"""

from ml_collections import ConfigDict

from configs import common

MASK_ID = 103  # [MASK] in BERT's vocabulary


def get_config() -> ConfigDict:
    c = common.get_config("RN50")
    c.workdir = "runs/icmlm_rn50"
    c.tokenizer = ""  # wordpiece:bert-base-uncased/vocab.txt
    bert = dict(kind="bert", context_length=32, activation="gelu")
    c.model.text = ConfigDict(bert)
    head = dict(fusion="tfm", width=768, layers=2, text_layers=0, heads=12, mask_id=MASK_ID)
    c.model.heads = ConfigDict(dict(masked_words=head))
    c.objective.name = "masked_words"
    c.objective.options = ConfigDict(dict(tag_weight=0.1))
    c.optimizer.freeze = "text"
    c.batch_size = 512
    c.steps = 500_000
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip_norm = 10.0
    c.evaluate.suite = ("linear_probe",)
    return c

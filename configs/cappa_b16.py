"""CapPa B/16 (Tschannen et al. 2023): captions, three of four predicted in parallel.

    python -m clip_jax.main --config configs/cappa_b16.py --workdir runs/cappa_b16 \\
        --config.data.train='/data/{00000..41407}.tar' --config.tokenizer=siglip:spiece.model

The tokenizer's file `spiece.model`, of 32,000 pieces of C4, comes with SigLIP's released weights.

Hardware: TPU or GPU. The batch of 8,192 is global and is split over all devices.
Time:     On 256 v5e chips: 66 ms per step, at least 6.7 hours (1,710 chip-hours; planned).
Memory:   With parameters, Adam's moments and activations 0.46 GiB of a v5e's 15.75 (planned).
Score:    Not measured.
Measured here: nothing. Planned means `--mode=plan --topology=v5e:16x16`: compiled, not run. The
sizes, the batch, the steps and the optimizer's values are the paper's, but AdamW replaces
Adafactor, and the decoder's MLPs and LayerNorms have biases. The image tower has no class token,
and its output for probes is the mean of the patches: our own choice.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("ViT-B/16")
    c.workdir = "runs/cappa_b16"
    c.mesh.update(data=1, fsdp=-1)  # shards parameters and optimizer over all devices
    c.tokenizer = ""  # siglip:spiece.model
    c.model.vision.update(pool="mean", ln_pre=False, patch_bias=True)
    # The text tower takes no part: a bag of words is the smallest.
    c.model.text.update(vocab_size=32_000, context_length=64, width=64, layers=0, heads=1)
    c.model.heads = ConfigDict(dict(decoder=dict(width=768, layers=6, heads=12)))
    c.objective.name = "captioning"
    c.objective.options = ConfigDict(dict(parallel=0.75))
    c.batch_size = 8192
    c.steps = 366_500
    c.optimizer.learning_rate = 1e-3
    c.optimizer.b2 = 0.999
    c.optimizer.weight_decay = 1e-4
    c.optimizer.warmup_steps = 10_000
    c.optimizer.clip_norm = 1.0
    c.evaluate.suite = ("linear_probe", "scoring")
    return c

"""Fine-tunes the quickstart's model on 174 labelled photographs, with a classifier.

    python -m clip_jax.main --config configs/quickstart.py
    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb stamps
    python examples/sort_stamps.py stamps/usr/share/tuxpaint/stamps data/stamps
    python -m clip_jax.main --config configs/finetune_labels.py

Hardware: Two CPU cores.
Time:     36 seconds (measured, with other work on the machine), after the quickstart's minutes.
Memory:   1.0 GiB (measured).
Score:    44.8 % top-1 on 108 photographs in 13 classes; the quickstart's model, zero-shot: 22.2 %
          (measured, mean of three seeds; docs/benchmarks.md).

For images of your own set `data.train` and `evaluate.sets.mine.data` to folders with a folder for
each class. docs/finetune.md compares this with other ways to fine-tune.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    c.workdir = "runs/finetune_labels"
    c.weights.path = "runs/quickstart"
    c.objective.name = "classification"
    c.batch_size = 60
    c.steps = 150  # 50 epochs
    c.data.train = "data/stamps/train"
    c.data.captions = ("{caption}",)  # for contrastive objectives: the name of the class
    c.optimizer.learning_rate = 3e-4
    c.optimizer.muon_learning_rate = 0.0
    c.optimizer.warmup_steps = 10
    c.optimizer.layer_decay.vision = 0.65
    c.log.every = 10
    c.checkpoint.every = 1_000
    c.evaluate.every = 1_000
    c.evaluate.suite = ("zero_shot", "classifier")
    c.evaluate.sets.mine = ConfigDict({"data": "data/stamps/test"})
    return c

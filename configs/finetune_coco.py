"""Fine-tunes a model for retrieval on COCO by ALIGN's recipe (Jia et al. 2021, section 5.2).

    python -m clip_jax.main --config configs/finetune_coco.py \\
        --config.weights.path=open_clip_model.safetensors \\
        --config.data.train=/data/mscoco/dataset_coco.json:train+restval \\
        --config.evaluate.folder=/data

As `finetune_flickr30k.py`, with twice the steps. The splits `train` and `restval` of Karpathy's
file are the training data (82,783 and 30,504 images), `test` the test set of 5,000.

Hardware: TPU or GPU. The batch of 2,048 is global and is split over all devices;
          `--config.accumulate=16` fits it into less memory with the same gradients.
Time:     Not measured. 6,000 steps are 108 epochs of 113,287 images.
Memory:   Not measured.
Score:    Not measured. ALIGN's own, fine-tuned so: R@1 77.0 % image to text, 59.9 % text to image.
Measured here: nothing. The batch size, the learning rate, its linear decay and the steps are the
paper's; warm-up and weight decay it does not state.
"""

from ml_collections import ConfigDict

from configs import finetune_flickr30k


def get_config() -> ConfigDict:
    c = finetune_flickr30k.get_config()
    c.workdir = "runs/finetune_coco"
    c.steps = 6_000
    c.data.train = ""  # /data/mscoco/dataset_coco.json:train+restval
    c.evaluate.standard = ("mscoco",)
    return c

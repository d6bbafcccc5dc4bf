"""Fine-tunes a model for retrieval on Flickr30k by ALIGN's recipe (Jia et al. 2021, section 5.2).

    python -m clip_jax.main --config configs/finetune_flickr30k.py \\
        --config.weights.path=open_clip_model.safetensors \\
        --config.data.train=/data/flickr30k/dataset_flickr30k.json --config.evaluate.folder=/data

The JSON file is Karpathy's, beside the folder of images; its split `train` is the training data,
`test` the test set. Every epoch takes another one of the five captions of an image, so that no
image occurs twice in a batch. For another model change `common.get_config("ViT-B/32")`, and for
ALIGN itself also `tokenizer` as in `align_base.py`.

Hardware: TPU or GPU. The batch of 2,048 is global and is split over all devices;
          `--config.accumulate=16` fits it into less memory with the same gradients.
Time:     Not measured. 3,000 steps are 212 epochs of 29,000 images.
Memory:   Not measured.
Score:    Not measured. ALIGN's own, fine-tuned so: R@1 95.3 % image to text, 84.9 % text to image.
Measured here: nothing. The batch size, the learning rate, its linear decay and the steps are the
paper's; warm-up and weight decay it does not state.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("ViT-B/32")
    c.workdir = "runs/finetune_flickr30k"
    c.batch_size = 2_048
    c.steps = 3_000
    c.data.train = ""  # /data/flickr30k/dataset_flickr30k.json
    c.data.captions = ("{caption:each}",)
    c.optimizer.learning_rate = 1e-5
    c.optimizer.schedule = "linear"
    c.optimizer.warmup_steps = 0
    c.optimizer.weight_decay = 0.0
    c.checkpoint.every = 500
    c.evaluate.every = 500
    c.evaluate.suite = ("retrieval",)
    c.evaluate.standard = ("flickr30k",)
    return c

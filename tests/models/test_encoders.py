"""Text encoders of transformers: padding, positions, poolings, projections, precision, meshes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from training.test_flops import traced_forward

from clip_jax.errors import UserError
from clip_jax.models.architectures import TOWERS
from clip_jax.models.clip import CLIP, abstract_model, parameter_count, variables
from clip_jax.models.encoder import positions_of_words
from clip_jax.models.encoder_configs import M2MConfig, RobertaConfig, T5Config
from clip_jax.models.model_config import CLIPConfig, VisionConfig
from clip_jax.models.t5 import buckets
from clip_jax.training import flops
from clip_jax.weights import arrays
from steps import alone, assert_same_gradients, run
from support import refused

VISION = VisionConfig(image_size=8, patch_size=4, width=16, layers=1, heads=2)
SMALL: dict[str, Any] = dict(vocab_size=56, context_length=8, width=16, layers=2, heads=2)
ENCODERS: dict[str, Any] = {
    "roberta": RobertaConfig(**SMALL, positions=12, pad_id=1),
    "t5": T5Config(**SMALL, buckets=8, max_distance=6),
    "m2m": M2MConfig(**SMALL),
}
# The published encoders without heads: parameters of transformers' own classes.
PARAMETERS = {
    "roberta-base": 124_055_040,
    "xlm-roberta-base": 277_453_056,
    "xlm-roberta-large": 558_840_832,
    "google/mt5-base": 277_040_256,
}


def config_of(text: Any, embed_dim: int = 12) -> CLIPConfig:
    return CLIPConfig(embed_dim, "gelu", vision=VISION, text=text)


def built(text: Any, embed_dim: int = 12, **options: Any) -> CLIP:
    return CLIP(config_of(text, embed_dim), rngs=nnx.Rngs(0), **options)


def rows(*lengths: int, width: int, pad: int) -> Any:
    rng = np.random.default_rng(0)
    tokens = np.full((len(lengths), width), pad, np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = rng.integers(2, 56, length)
    return jnp.asarray(tokens)


def close(ours: Any, theirs: Any, off: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, rtol=off, atol=off)


@pytest.fixture(params=ENCODERS)
def text(request: pytest.FixtureRequest) -> Any:
    return ENCODERS[request.param]


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_padding_changes_nothing_and_words_do(text: Any, pool: str) -> None:
    model = built(dataclasses.replace(text, pool=pool))
    tokens = rows(3, 6, 5, width=8, pad=text.pad_id)
    features = model.encode_text(tokens)
    assert text.blind_to_padding
    close(model.encode_text(tokens[:, :6]), features)
    close(model.encode_text(tokens[:1, :3]), features[:1])
    other = model.encode_text(tokens.at[1, jnp.array([1, 4])].set(tokens[1, jnp.array([4, 1])]))
    close(other[::2], features[::2])
    assert not np.allclose(other[1], features[1], rtol=0, atol=1e-4)


def test_all_poolings_are_of_the_features_of_tokens(text: Any) -> None:
    tokens = rows(8, 4, width=8, pad=text.pad_id)
    for pool in text.pools:
        tower = built(dataclasses.replace(text, pool=pool)).text
        words = tower.token_features(tokens)
        assert words.shape == (2, 8, text.token_width)
        pooled = tower.pooled(tokens)
        if pool == "mean":
            close(pooled, [words[0].mean(0), words[1, :4].mean(0)], 1e-4)
        elif pool == "first":
            close(pooled, words[:, 0])
        else:
            close(pooled, jnp.tanh(tower.pooler(words[:, 0])))


def test_positions_count_words_only() -> None:
    tokens = jnp.array([[5, 1, 7, 8, 1, 1], [4, 5, 6, 7, 8, 9]])
    expected = [[2, 1, 3, 4, 1, 1], [2, 3, 4, 5, 6, 7]]
    np.testing.assert_array_equal(positions_of_words(tokens, 1), expected)


def test_projections(text: Any) -> None:
    tokens = rows(8, 4, width=8, pad=text.pad_id)
    none = built(dataclasses.replace(text, projection="none"), 16)
    close(none.text(tokens), none.text.pooled(tokens))
    linear, mlp = (built(dataclasses.replace(text, projection=p)) for p in ("linear", "mlp"))
    extra = parameter_count(mlp) - parameter_count(linear)
    assert extra == 16 * 14 + 14 * 12 - 16 * 12
    hidden = jax.nn.gelu(mlp.text.pooled(tokens) @ mlp.text.projection.fc.kernel, approximate=False)
    close(mlp.text(tokens), hidden @ mlp.text.projection.proj.kernel)
    refused(lambda: built(dataclasses.replace(text, projection="none")), "embed_dim=12", "'none'")


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_flops_are_those_of_the_program(text: Any, projection: str) -> None:
    config = config_of(dataclasses.replace(text, pool="mean", projection=projection))
    for tokens in (8, 5):
        assert (
            flops.forward(config, tokens=tokens).text == traced_forward(config, tokens=tokens).text
        )


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(text: Any, remat: str) -> None:
    tokens = rows(3, 8, 5, width=8, pad=text.pad_id)

    def gradients(model: CLIP) -> Any:
        graph, params = nnx.split(model.text)
        return jax.grad(lambda p: jnp.sin(nnx.merge(graph, p)(tokens)).sum())(params)

    plain, again = gradients(built(text)), gradients(built(text, remat=remat))
    jax.tree.map(lambda a, b: close(a, b, 1e-6), plain, again)


def test_bfloat16_is_close_to_float32(text: Any) -> None:
    tokens = rows(3, 8, 5, width=8, pad=text.pad_id)
    exact = built(text).encode_text(tokens)
    for dtype in ("bfloat16", "mixed"):
        close(built(text, dtype=dtype).encode_text(tokens), exact, 0.03)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (dict(heads=3), "heads=3"),
        (dict(layers=0), "layers=0"),
        (dict(pool="max"), "pool='max' must be mean or first"),
        (dict(projection="lineal"), "none, linear, mlp"),
        (dict(pad_id=56), "vocab_size=56"),
    ],
)
def test_sizes_that_fit_nothing(text: Any, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        built(dataclasses.replace(text, **values))


def test_a_text_has_room_after_the_unused_positions() -> None:
    roberta = ENCODERS["roberta"]
    built(dataclasses.replace(roberta, context_length=10))
    with pytest.raises(UserError, match="context_length=11 is above the 10 tokens"):
        built(dataclasses.replace(roberta, context_length=11))


def test_ranges_of_relative_positions() -> None:
    """Single distances up to 7, then factors of 2^½ up to 128; the same again for later keys."""
    numbers = buckets(300, 32, 128)
    row = numbers[150]
    assert row[150] == 0 and list(row[143:150]) == [7, 6, 5, 4, 3, 2, 1]
    assert list(row[151:158]) == [17, 18, 19, 20, 21, 22, 23]
    firsts = [150 - int(np.max(np.nonzero(row[:150] == number))) for number in range(8, 16)]
    assert firsts == [8, 12, 16, 23, 32, 46, 64, 91]
    np.testing.assert_array_equal(row[151:], row[149:0:-1] + 16)
    for i in (0, 77):
        np.testing.assert_array_equal(np.diag(numbers, i), row[150 + i])


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("t5", dict(buckets=6), "buckets=6 must be a multiple of 4"),
        ("t5", dict(max_distance=2), "max_distance=2 above a quarter"),
        ("m2m", dict(width=15, heads=3), "width=15 must be even"),
    ],
)
def test_sizes_that_do_not_fit_a_kind(name: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        built(dataclasses.replace(ENCODERS[name], **values))


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    tower: Any = dataclasses.replace(TOWERS[name], projection="none")
    vision = dataclasses.replace(VISION, width=16)
    config = CLIPConfig(tower.width, vision=vision, text=tower)
    assert parameter_count(abstract_model(config).text) == PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [dict(data=2, fsdp=2, tensor=2), dict(data=1, tensor=2)])
def test_a_mesh_computes_the_same(text: Any, shape: dict[str, int]) -> None:
    config = dataclasses.replace(config_of(text), embed_dim=16)
    _, expected, _ = alone(config)
    chunks = (1, 1) if text.hidden_width else (1, 0)
    _, sharded, _ = run(shape, config=config, remat="full", chunks=chunks)
    assert_same_gradients(sharded, expected)


# By kind: the standard deviations of fresh parameters, as transformers draws them.
WIDE: dict[str, Any] = dict(vocab_size=400, context_length=8, width=64, layers=2, heads=4)
SPREADS: dict[str, tuple[Any, dict[str, float]]] = {
    "roberta": (
        RobertaConfig(**WIDE, positions=60),
        {
            "token_embedding/embedding": 0.02,
            "positional_embedding": 0.02,
            "transformer/blocks/attention/qkv/kernel": 0.02,
            "transformer/blocks/mlp/proj/kernel": 0.02,
            "projection/kernel": (3 * 64) ** -0.5,  # uniform: torch's
        },
    ),
    "m2m": (
        M2MConfig(**WIDE),
        {"token_embedding/embedding": 0.02, "transformer/blocks/attention/out/kernel": 0.02},
    ),
    "t5": (
        T5Config(**WIDE),
        {
            "token_embedding/embedding": 1.0,
            "transformer/relative_bias": 64**-0.5,
            "transformer/blocks/attention/qkv/kernel[q]": (64 * 16) ** -0.5,
            "transformer/blocks/attention/qkv/kernel[k]": 64**-0.5,
            "transformer/blocks/attention/out/kernel": 64**-0.5,
            "transformer/blocks/mlp/gate/kernel": 64**-0.5,
            "transformer/blocks/mlp/proj/kernel": 171**-0.5,
        },
    ),
}


@pytest.mark.parametrize("kind", SPREADS)
def test_initial_values(kind: str) -> None:
    text, spreads = SPREADS[kind]
    values = dict(arrays.flat(variables(built(text, 64))[0]["text"]))
    for name, spread in spreads.items():
        path, _, part = name.partition("[")
        array = np.asarray(values[path])
        if part:
            array = array[..., :64] if part == "q]" else array[..., 64:]
        assert array.std() == pytest.approx(spread, rel=0.15), name
        assert abs(array.mean()) < 4 * spread * array.size**-0.5
    for path, value in values.items():
        if path.endswith("bias") and "relative" not in path:
            assert not np.any(value), path

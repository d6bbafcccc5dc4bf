"""The loss of held-out pairs against its definition, in batches that stay the same."""

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.validation_loss import choose_pairs, validation_loss


def features(count, width=8):
    rng = np.random.default_rng(count)
    text = rng.normal(size=(count, width))
    image = text + rng.normal(size=(count, width))
    return tuple(
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (image, text)
    )


def softmax_by_definition(image, text, scale):
    logits = scale * image.astype(np.float64) @ text.T
    losses = []
    for x in (logits, logits.T):
        losses.append(np.log(np.exp(x).sum(1)) - np.diag(x))
    return np.mean(losses)


def test_the_loss_is_the_mean_of_full_batches():
    image, text = features(23)
    result = validation_loss(image, text, np.arange(23), 9.0, None, 5)
    batches = [slice(first, first + 5) for first in (0, 5, 10, 15)]
    expected = np.mean([softmax_by_definition(image[b], text[b], 9.0) for b in batches])
    assert result.loss == pytest.approx(expected, rel=1e-6)
    right = np.mean([((9 * image[b] @ text[b].T).argmax(1) == range(5)).mean() for b in batches])
    assert result.image_to_text_accuracy == pytest.approx(right)
    assert (result.batch_size, result.batches) == (5, 4)


def test_fewer_pairs_than_a_batch_are_one_batch_and_a_bias_means_the_sigmoid_loss():
    image, text = features(6)
    result = validation_loss(image, text, np.arange(6), 9.0, -3.0, 256)
    logits = 9.0 * image.astype(np.float64) @ text.T - 3
    expected = np.logaddexp(0, np.where(np.eye(6), -logits, logits)).sum() / 6
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert (result.batch_size, result.batches) == (6, 1)
    with pytest.raises(UserError):
        validation_loss(image[:1], text[:1], np.arange(1), 9.0, None, 256)


def test_pairs_of_one_group_are_not_negatives_of_each_other():
    image, text = features(4)
    together = validation_loss(image, text, np.array([0, 1, 2, 2]), 9.0, None, 4)
    apart = validation_loss(image, text, np.arange(4), 9.0, None, 4)
    assert together.loss < apart.loss


def test_every_image_with_a_text_is_in_one_pair_and_the_pairs_stay_the_same():
    image_group, text_group = np.array([3, 0, 1, 2, 9]), np.array([0, 0, 0, 1, 2, 3, 3])
    images, texts = choose_pairs(image_group, text_group)
    assert sorted(images) == [0, 1, 2, 3] and images.dtype == np.int64
    np.testing.assert_array_equal(image_group[images], text_group[texts])
    again = choose_pairs(image_group, text_group)
    np.testing.assert_array_equal(np.stack(again), np.stack([images, texts]))

"""A run before it starts."""

import jax
import pytest

from clip_jax import config as config_lib
from clip_jax.errors import UserError
from clip_jax.training import run
from support import says


def test_mistakes_in_the_config_are_found_before_a_device_is_touched(monkeypatch):
    def touched():
        raise AssertionError("a device was touched")

    monkeypatch.setattr(jax, "device_count", touched)
    c, _ = config_lib.load("quickstart", ["data.augment.flip=2.0"])
    with pytest.raises(UserError) as error:
        run.prepare(c)
    assert says(error.value, "config.data.augment.flip=2.0")

"""ViT-B/16"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("ViT-B/16")
    c.workdir = "runs/vit_b16"
    return c

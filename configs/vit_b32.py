"""ViT-B/32"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("ViT-B/32")
    c.workdir = "runs/vit_b32"
    return c

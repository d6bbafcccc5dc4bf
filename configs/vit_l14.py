"""ViT-L/14"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("ViT-L/14")
    c.workdir = "runs/vit_l14"
    return c

"""ViT-L/14@336px"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config("ViT-L/14@336px")
    c.workdir = "runs/vit_l14_336"
    return c

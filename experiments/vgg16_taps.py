"""Claim: for small grey pictures unlike ImageNet's, the middle of a frozen VGG-16 says more than its end.

Fashion-MNIST at 64x64, 200 pictures of each class, a linear head on the map of one stage, averaged to 4x4 places and
standardised per channel. Only the stage differs (Yosinski et al. 2014, arXiv:1411.1792, on why depth matters).
"""

from configs import vgg16_fashion


def get_config():
    """The sweep: the recipe of configs/vgg16_fashion.py, tapped at four depths."""
    c = vgg16_fashion.get_config()
    c.model.pool_size = 4
    c.train.eval_epochs = 5
    c.sweep = {"model.out_stage": ["stage2", "stage3", "stage4", "stage5"]}
    return c

"""Hypothesis: for small gray images unlike ImageNet's, middle stages of a frozen VGG-16 transfer better than late ones.

Fashion-MNIST at 64x64, 200 images per class, a linear head on the features of one stage, averaged to 4x4 and
standardized per channel. Only the stage varies (Yosinski et al. 2014, arXiv:1411.1792, on transfer by depth).
"""

from configs import vgg16_fashion


def get_config():
    """Return the config of configs/vgg16_fashion.py with a sweep over four stages."""
    c = vgg16_fashion.get_config()
    c.model.pool_size = 4
    c.train.eval_epochs = 5
    c.sweep = {"model.out_stage": ["stage2", "stage3", "stage4", "stage5"]}
    return c

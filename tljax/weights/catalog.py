"""Weights that others have published: where each file lies, which network it fits, and what it wants to be fed.

tests/golden/make_catalogue.py reads the same facts from the publishers' own tables.
"""

from __future__ import annotations

import dataclasses

from tljax.weights.preprocess import PRESETS, Preprocess

RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class PretrainedConfig:
    """One published file of weights.

    Attributes:
      name: as `model.weights` takes it; its prefix is the publisher.
      backbone: the network it fits, by our name.
      source: the file's address; for the hub, the repository.
      digest: what the file's SHA-256 begins with (torchvision), its MD5 (Keras), or None (the hub tells).
      layout: whose names and axes its tensors have: "torchvision", "timm" or "keras".
      licence: as its publisher states it; the pictures it was trained on may add terms of their own.
      classes: outputs of its classifier; 0: it has none to use.
      size: side of the network's input, in pixels.
      crop: share of the resized picture's shorter side that this input is.
      squash: the whole picture is squashed to a square, instead of cropped to one.
      interpolation: "bilinear" or "bicubic".
      normalisation: a name in `preprocess.PRESETS`, or mean and deviation of an RGB picture in 0..1.
    """

    name: str
    backbone: str
    source: str
    digest: str | None
    layout: str
    licence: str
    classes: int = 1000
    size: int = 224
    crop: float = 0.875
    squash: bool = False
    interpolation: str = "bilinear"
    normalisation: str | tuple[RGB, RGB] = "torch"

    @property
    def preprocess(self) -> Preprocess:
        """What a picture has to become for it. The whole picture is used: `crop` is how its publisher tests."""
        if isinstance(self.normalisation, str):
            base = PRESETS[self.normalisation]
        else:
            mean, std = self.normalisation
            base = Preprocess(self.name, 1 / 255, mean, std)
        return dataclasses.replace(base, size=self.size, interpolation=self.interpolation)

    @property
    def digest_is_md5(self) -> bool:
        """Keras publishes MD5, others SHA-256."""
        return self.digest is not None and len(self.digest) == 32


# RGB minus means on 0..255, for an SSD detector.
_SSD = ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255))


def _torchvision(
    backbone: str, member: str, file: str, *, size: int = 224, resize: int = 256, **facts
) -> PretrainedConfig:
    name, source = f"torchvision:{backbone}.{member}", f"https://download.pytorch.org/models/{file}.pth"
    digest, trunk = file.rpartition("-")[2], backbone.removeprefix("fcn_")
    return PretrainedConfig(
        name, trunk, source, digest, "torchvision", "bsd-3-clause", size=size, crop=size / resize, **facts
    )


def _timm(
    tags: str, backbones: str, *, licence: str = "apache-2.0", interpolation: str = "bicubic", **facts
) -> list[PretrainedConfig]:
    pairs = [(b, f"timm/{b}.{tag}") for b in backbones.split() for tag in tags.split()]
    return [
        PretrainedConfig(f"hf:{r}", b, r, None, "timm", licence, interpolation=interpolation, **facts) for b, r in pairs
    ]


def _keras(
    name: str, with_top: str, notop: str, licence: str, *, folder: str = "", suffix: str = "", **facts
) -> list[PretrainedConfig]:
    place = f"https://storage.googleapis.com/tensorflow/keras-applications/{folder or name}/{name}_weights"
    return [
        PretrainedConfig(
            f"keras:{name}{top}",
            name + suffix,
            f"{place}_tf_dim_ordering_tf_kernels{top}.h5",
            md5,
            "keras",
            licence,
            classes=classes,
            crop=1.0,
            **facts,
        )
        for top, md5, classes in (("", with_top, 1000), ("_notop", notop, 0))
    ]


_V1, _V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
_COCO = {"member": "COCO_WITH_VOC_LABELS_V1", "size": 520, "resize": 520, "classes": 21}
_TORCHVISION = (
    _torchvision("vgg11", _V1, "vgg11-8a719046"),
    _torchvision("vgg11_bn", _V1, "vgg11_bn-6002323d"),
    _torchvision("vgg13", _V1, "vgg13-19584684"),
    _torchvision("vgg13_bn", _V1, "vgg13_bn-abd245e5"),
    _torchvision("vgg16", _V1, "vgg16-397923af"),
    # Its file has dense layers too, without usable values.
    _torchvision("vgg16", "IMAGENET1K_FEATURES", "vgg16_features-amdegroot-88682ab5", classes=0, normalisation=_SSD),
    _torchvision("vgg16_bn", _V1, "vgg16_bn-6c64b313"),
    _torchvision("vgg19", _V1, "vgg19-dcbb9e9d"),
    _torchvision("vgg19_bn", _V1, "vgg19_bn-c79401a0"),
    _torchvision("resnet18", _V1, "resnet18-f37072fd"),
    _torchvision("resnet34", _V1, "resnet34-b627a593"),
    _torchvision("resnet50", _V1, "resnet50-0676ba61"),
    _torchvision("resnet50", _V2, "resnet50-11ad3fa6", resize=232),
    _torchvision("resnet101", _V1, "resnet101-63fe2227"),
    _torchvision("resnet101", _V2, "resnet101-cd907fc2", resize=232),
    _torchvision("resnet152", _V1, "resnet152-394f9c45"),
    _torchvision("resnet152", _V2, "resnet152-f82ba261", resize=232),
    _torchvision("resnext50_32x4d", _V1, "resnext50_32x4d-7cdf4587"),
    _torchvision("resnext50_32x4d", _V2, "resnext50_32x4d-1a0047aa", resize=232),
    _torchvision("resnext101_32x8d", _V1, "resnext101_32x8d-8ba56ff5"),
    _torchvision("resnext101_32x8d", _V2, "resnext101_32x8d-110c445d", resize=232),
    _torchvision("wide_resnet50_2", _V1, "wide_resnet50_2-95faca4d"),
    _torchvision("wide_resnet50_2", _V2, "wide_resnet50_2-9ba9bcbe", resize=232),
    _torchvision("wide_resnet101_2", _V1, "wide_resnet101_2-32ee1156"),
    _torchvision("wide_resnet101_2", _V2, "wide_resnet101_2-d733dc28", resize=232),
    # The DenseNets' files say `norm.1` where torchvision's module says `norm1`; `conv.1` likewise.
    _torchvision("densenet121", _V1, "densenet121-a639ec97"),
    _torchvision("densenet161", _V1, "densenet161-8d451a50"),
    _torchvision("densenet169", _V1, "densenet169-b2777c0a"),
    _torchvision("densenet201", _V1, "densenet201-c1103571"),
    # For these weights torchvision's two Inceptions undo ImageNet's normalisation inside the model (`transform_input`):
    # their first convolution sees -1..1. Both files hold auxiliary heads; GoogLeNet's were never trained.
    _torchvision("googlenet", _V1, "googlenet-1378be20", normalisation="symmetric"),
    _torchvision("inception_v3", _V1, "inception_v3_google-0cc3c7bd", size=299, resize=342, normalisation="symmetric"),
    _torchvision("convnext_tiny", _V1, "convnext_tiny-983f1562", resize=236),
    _torchvision("convnext_small", _V1, "convnext_small-0c510722", resize=230),
    _torchvision("convnext_base", _V1, "convnext_base-6075fbad", resize=232),
    # The shorter side becomes 520; nothing is cropped. Their files hold an auxiliary head.
    _torchvision("fcn_resnet50", file="fcn_resnet50_coco-1167a1af", **_COCO),
    _torchvision("fcn_resnet101", file="fcn_resnet101_coco-7ecb50ca", **_COCO),
)

_VGG = "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn"
_DEEP = "resnet50 resnet101 resnet152 resnext50_32x4d"
_WIDE = "resnext101_32x8d wide_resnet50_2 wide_resnet101_2"
_META_RESNETS = "resnet18 resnet50 resnext50_32x4d resnext101_32x8d"
_CONVNEXT = "convnext_tiny convnext_small convnext_base"
_BSD = {"licence": "bsd-3-clause", "interpolation": "bilinear"}
_META = {"licence": "cc-by-nc-4.0", "interpolation": "bilinear"}
_CLIP = {
    "backbones": "convnext_base",
    "crop": 1.0,
    "normalisation": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
# `size` is the one trained at: 176 for `tv2`, which torchvision itself recommends for 224.
_TIMM = (
    *_timm("tv_in1k", f"{_VGG} resnet18 resnet34 {_DEEP} {_WIDE}", **_BSD),
    *_timm("tv2_in1k", f"{_DEEP} {_WIDE}", size=176, **_BSD),
    *_timm("a1_in1k a2_in1k", f"resnet18 resnet34 {_DEEP}", crop=0.95),
    *_timm("a3_in1k", f"resnet18 resnet34 {_DEEP}", size=160, crop=0.95),
    *_timm("a1h_in1k", "resnet50", size=176, crop=0.9),
    *_timm("a1h_in1k", "resnet101 resnet152 resnext50_32x4d", crop=0.95),
    *_timm("b1k_in1k b2k_in1k c1_in1k c2_in1k d_in1k", "resnet50", crop=0.95),
    *_timm("bt_in1k", "resnet34 resnet50"),
    *_timm("am_in1k ram_in1k", "resnet50"),
    *_timm("ra_in1k", "resnet50 resnext50_32x4d densenet121"),
    *_timm("racm_in1k", "wide_resnet50_2"),
    *_timm("ra4_e3600_r224_in1k", "resnet34", crop=0.9, normalisation="symmetric"),
    *_timm("gluon_in1k", f"resnet18 resnet34 {_DEEP}"),
    *_timm("fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k", _META_RESNETS, **_META),
    *_timm("fb_wsl_ig1b_ft_in1k", "resnext101_32x8d", **_META),
    *_timm("tv_in1k", "densenet121 densenet161 densenet169 densenet201"),
    # `tv_in1k` holds the auxiliary head.
    *_timm("tf_in1k tf_adv_in1k tv_in1k", "inception_v3", size=299, normalisation="symmetric"),
    *_timm("gluon_in1k", "inception_v3", size=299),
    *_timm("fb_in1k fb_in22k_ft_in1k", _CONVNEXT),
    *_timm("fb_in22k", _CONVNEXT, classes=21841),
    *_timm("fb_in22k_ft_in1k_384", _CONVNEXT, size=384, crop=1.0, squash=True),
    *_timm("in12k", "convnext_tiny convnext_small", crop=0.95, classes=11821),
    *_timm("in12k_ft_in1k", "convnext_tiny convnext_small", crop=0.95),
    *_timm("in12k_ft_in1k_384", "convnext_tiny convnext_small", size=384, crop=1.0, squash=True),
    *_timm("clip_laion2b_augreg_ft_in1k clip_laion2b_augreg_ft_in12k_in1k", size=256, **_CLIP),
    *_timm("clip_laion2b_augreg_ft_in12k", size=256, classes=11821, **_CLIP),
    *_timm("clip_laion2b_augreg_ft_in12k_in1k_384", size=384, squash=True, **_CLIP),
    *_timm("clip_laiona_augreg_ft_in1k_384", size=384, **_CLIP),
)

_KERAS_VGG = {"normalisation": "caffe", "licence": "cc-by-4.0"}
_KERAS_RESNET = {"folder": "resnet", "suffix": "_v1", "normalisation": "caffe", "licence": "mit"}
_KERAS_DENSENET = {"folder": "densenet", "suffix": "_keras", "licence": "bsd-3-clause"}
_KERAS_INCEPTION = {"suffix": "_keras", "normalisation": "symmetric", "size": 299, "licence": "apache-2.0"}
# MD5 with the classifier and without. Keras prescribes no crop and no interpolation: the picture fills the input.
_KERAS = (
    *_keras("vgg16", "64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc", **_KERAS_VGG),
    *_keras("vgg19", "cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6", **_KERAS_VGG),
    *_keras("resnet50", "2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626", **_KERAS_RESNET),
    *_keras("resnet101", "f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21", **_KERAS_RESNET),
    *_keras("resnet152", "100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c", **_KERAS_RESNET),
    *_keras("densenet121", "9d60b8095a5708f2dcce2bca79d332c7", "30ee3e1110167f948a6b9946edeeb738", **_KERAS_DENSENET),
    *_keras("densenet169", "d699b8f76981ab1b30698df4c175e90b", "b8c4d4c20dd625c148057b9ff1c1176b", **_KERAS_DENSENET),
    *_keras("densenet201", "1ceb130c1ea1b78c3bf6114dbdfd8807", "c13680b51ded0fb44dff2d8f86ac8bb1", **_KERAS_DENSENET),
    *_keras("inception_v3", "9a0d58056eeedaa3f26cb7ebd46da564", "bcbd6486424b2319ff4ef7d526e38f63", **_KERAS_INCEPTION),
)

# Lies in the folder that TLJAX_WEIGHTS_DIR names, and is downloaded from nowhere.
_LOCAL = PretrainedConfig(
    "vgg16_imagenet_notop",
    "vgg16",
    "vgg16_imagenet_notop.safetensors",
    "42530430a0f2ebdb770e531ae3d09a4e15b324de26bde4e9ef40cb20d2e02e24",
    "torchvision",
    "cc-by-4.0",
    classes=0,
    crop=1.0,
    normalisation="caffe",
)

CATALOG = {entry.name: entry for entry in (*_TORCHVISION, *_TIMM, *_KERAS, _LOCAL)}

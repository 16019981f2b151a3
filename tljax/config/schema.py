"""Config fields of a run, each with type, unit, default and description.

Use them through `tljax.config`, which reads, checks and writes configs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from tljax.config.fields import field
from tljax.config.phases import StrategyConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set and its splits."""

    name: str = field(
        "digits",
        "source: folder or csv, image files with classes; digits, idx, fashion-mnist, or tfds:NAME; with masks or "
        "boxes scenes, coco, voc, masks, yolo, or tfds:NAME; or a function FILE.py:NAME (docs/extending.md)",
    )
    path: str | None = field(None, "folder of the files; for csv the table; for tfds:, its data_dir")
    options: Mapping = field({}, "options of the source, e.g. {'train': 2000} for scenes (docs/data.md)")
    classes: tuple[int, ...] = field((), "classes to keep, relabelled from 0 in this order; empty: all")
    labels_per_class: int | None = field(
        None, "labelled training images per class; for one seed a larger set contains the smaller; None: all", ge=1
    )
    num_train: int | None = field(
        None, "training images, for data without one class per image; nested likewise; None: all", ge=1
    )
    valid_fraction: float = field(0.2, "fraction of each class's training images held out for validation", gt=0, lt=1)
    test_fraction: float | None = field(
        None,
        "folder and csv without a test split: fraction of each class's images held out for testing, before those for "
        "validation; None: 0.2",
        gt=0,
        lt=1,
    )
    split: str = field(
        "fraction",
        "fraction: validation images are held out of the training images; first_per_class: the first labels_per_class "
        "images of each class of the training files are for training, as many of the test files for validation, the "
        "rest of the test files for testing",
        choices=("fraction", "first_per_class"),
    )
    unlabelled: int = field(
        0,
        "number of other training images used without labels, drawn at random regardless of class; -1: all",
        ge=-1,
    )
    image_size: int | None = field(
        None, "side of the square network input; None: the size that the weights were trained with", unit="pixels", ge=1
    )
    resize: str | None = field(
        None,
        "how an image becomes square: crop, the shorter side is resized and the center is taken; pad, the longer side "
        "is resized and the background is added; stretch, both sides are resized; None: crop for folder and csv, else "
        "stretch",
        choices=("crop", "pad", "stretch"),
    )
    store_size: int | None = field(
        None,
        "side of the square images in memory, from which augment.crop_scale crops; None: for crop the input size over "
        "the weights' crop share, rounded up, else the input size",
        unit="pixels",
        ge=1,
    )
    background: str = field("white", "color of transparent pixels and of padding: white, black or #rrggbb")
    max_memory_gb: float = field(
        4.0,
        "folder and csv: images that take more are decoded once to a file under $TLJAX_CACHE/images",
        unit="10⁹ bytes",
        gt=0,
    )
    on_error: str = field(
        "error",
        "for a file that cannot be read or does not match its annotation: error, or skip with a report",
        choices=("error", "skip"),
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone, its pretrained weights, and the head."""

    backbone: str = field(
        "resnet8", "name of the network (python -m tljax.models lists them), or FILE.py:NAME (docs/extending.md)"
    )
    options: Mapping = field({}, "changed options of the network, e.g. {'drop_path': 0.1}")
    weights: str | None = field(
        None,
        "pretrained weights: a name in the catalogue (python -m tljax.weights), a file (.safetensors, .pth, .h5), "
        "hf:OWNER/REPO, torchvision:NAME, keras:NAME, package:DISTRIBUTION/FILE (of an installed package), "
        "workdir:PATH (the best model of a finished run), or recipe:CONFIG.py (a run that is trained first if it does "
        "not exist)",
    )
    preprocess: str | None = field(
        None,
        "preprocessing, for weights that do not specify it",
        choices=("caffe", "torch", "symmetric", "unit"),
    )
    in_channels: int = field(3, "input channels; the first convolution of RGB weights is adapted to them", ge=1)
    out_stage: str | None = field(None, "stage that the head reads; later stages are not built; None: the last")
    head: str = field(
        "classifier",
        "head of the network, which determines the task: classifier; unet or fcn for segmentation; detector for "
        "detection; or a class FILE.py:NAME (docs/extending.md)",
    )
    head_options: Mapping = field({}, "options of the head, e.g. {'upsample': 'bilinear'} (docs/models.md)")
    num_classes: int | None = field(None, "outputs of the head; None: number of classes of the data", ge=1)
    pool: str = field(
        "avg", "pooling before the classifier: avg, global average; flatten, no pooling", choices=("avg", "flatten")
    )
    pool_size: int | None = field(
        None,
        "flatten: side of the grid that features are averaged to first (torchvision's VGG: 7); None: not averaged",
        ge=1,
    )
    norm: str | None = field(
        None,
        "normalization of the features before the classifier: batch, BatchNorm without scale and bias; layer, "
        "LayerNorm; None: as published (layer for ConvNeXt, none for the others)",
        choices=("none", "batch", "layer"),
    )
    hidden: tuple[int, ...] = field((), "widths of hidden dense layers (with ReLU) in the classifier")
    dropout: float = field(0.0, "dropout rate before each dense layer of the classifier", ge=0, lt=1)
    aux_weight: float = field(
        0.0,
        "weight of the loss of the auxiliary classifiers of googlenet (paper: 0.3) and inception_v3 (0.4); 0: no "
        "auxiliary classifiers",
        ge=0,
    )
    remat: bool = field(False, "recompute activations inside stages in the backward pass: less memory, more time")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer. Weight decay is decoupled (Loshchilov & Hutter 2019) and not applied to biases and norms."""

    name: str = field(
        "adam",
        "optimizer: sgd, momentum, nesterov, adam, adamw, rmsprop, or a function FILE.py:NAME (docs/extending.md)",
    )
    lr: float = field(1e-3, "peak learning rate", gt=0)
    schedule: str = field(
        "constant", "learning-rate schedule of a phase, after warm-up", choices=("constant", "cosine", "step")
    )
    warmup_epochs: float = field(0.0, "length of the linear warm-up at the start of every phase", unit="epochs", ge=0)
    step_epochs: tuple[float, ...] = field(
        (), "epochs of the phase at which schedule=step multiplies the learning rate by step_factor", unit="epochs"
    )
    step_factor: float = field(0.1, "factor of schedule=step", gt=0, lt=1)
    weight_decay: float = field(0.0, "decoupled weight decay, multiplied by the learning rate in each step", ge=0)
    momentum: float | None = field(
        None, "momentum; None: 0.9 for momentum and nesterov, 0 for sgd and rmsprop", ge=0, lt=1
    )
    b1: float = field(0.9, "decay of Adam's first moment", ge=0, lt=1)
    b2: float = field(0.999, "decay of Adam's second moment", ge=0, lt=1)
    rho: float = field(0.9, "decay of RMSprop's mean square", ge=0, lt=1)
    eps: float | None = field(
        None, "added to the denominator; None: 1e-8 for adam, 1e-7 inside the root for rmsprop", gt=0
    )
    clip_norm: float | None = field(
        None, "maximum global norm of the gradient of the trainable parameters; None: no clipping", gt=0
    )
    label_smoothing: float = field(0.0, "fraction of the target spread evenly over the classes", ge=0, lt=1)
    class_weights: tuple[float, ...] = field(
        (), "weight of each class in the cross-entropy, a weighted mean; empty: equal weights"
    )
    l2: float = field(
        0.0,
        "weight of half the squared norm of the trainable kernels in the loss (coupled L2 regularization); with l2_sp, "
        "only of kernels without a pretrained value",
        ge=0,
    )
    l2_sp: float = field(
        0.0,
        "weight of half the squared distance of the trainable parameters from their pretrained values in the loss "
        "(L2-SP, Li et al. 2018)",
        ge=0,
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    batch_size: int = field(32, "images per step, over all devices", ge=1)
    epochs: float = field(10.0, "length of the run, over all phases", unit="epochs", gt=0)
    eval_epochs: float = field(1.0, "interval between validations, each with a checkpoint", unit="epochs", gt=0)
    checkpoint_epochs: float | None = field(
        None, "interval between additional checkpoints, may be less than 1", unit="epochs", gt=0
    )
    patience_epochs: float | None = field(
        None,
        "end a phase after this time without a better validation score; None: no early stopping",
        unit="epochs",
        gt=0,
    )
    grad_accum_steps: int = field(
        1, "number of parts of a batch computed one after another, with accumulated gradients: less memory", ge=1
    )
    sharding: str = field(
        "none",
        "none: every device stores all parameters; fsdp: large parameters and their optimizer state are sharded over "
        "devices (FSDP, ZeRO-3), for models that exceed the memory of one device",
        choices=("none", "fsdp"),
    )
    compute_dtype: str = field(
        "float32", "data type of activations; parameters are float32", choices=("float32", "bfloat16")
    )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training images."""

    flip: bool = field(False, "flip horizontally with probability 0.5")
    crop_scale: tuple[float, float] = field(
        (1.0, 1.0),
        "random resized crop: minimum and maximum share of the image's area, e.g. (0.35, 1.0), with an aspect ratio of "
        "3/4 to 4/3 (Szegedy et al. 2015); (1.0, 1.0): off",
    )
    crop_padding: int = field(0, "padding on each side before a random crop to the original size", unit="pixels", ge=0)
    scale: tuple[float, float] = field((1.0, 1.0), "minimum and maximum factor of the image size")
    rotate: float = field(0.0, "maximum rotation in either direction", unit="degrees", ge=0, le=180)
    translate: float = field(0.0, "maximum shift in either direction, as a fraction of the side", ge=0, lt=1)
    mosaic: float = field(
        0.0, "segmentation and detection: probability of a mosaic of four images of the batch", ge=0, le=1
    )
    color: float = field(
        0.0,
        "strength of two random color or sharpness operations, as a fraction of FixMatch's ranges",
        ge=0,
        le=1,
    )
    strong_magnitude: float = field(
        1.0,
        "strength of strong views of unlabelled images, as a fraction of FixMatch's ranges: an affine warp, two color "
        "or sharpness operations and a gray square (cutout); 0: only flip and crop",
        ge=0,
        le=1,
    )
    ops: tuple[tuple[str, float], ...] = field(
        (),
        "further operations, applied last and in order to weak and strong views: pairs of name and strength or "
        "probability; color, cutout, grayscale, or a function FILE.py:NAME (docs/extending.md)",
    )


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """Caching of the outputs of frozen networks. Of these fields only `num_views` changes the result of training."""

    storage: str = field(
        "disk",
        "disk: memory-mapped files under $TLJAX_CACHE/features, also for later runs; memory: only for this process; "
        "none: no caching",
        choices=("disk", "memory", "none"),
    )
    num_views: int = field(
        0,
        "with augmentation: number of augmented views of each image whose features are cached; epoch e uses view e mod "
        "num_views; 0: augmentation is drawn anew in every step and features are not cached",
        ge=0,
    )
    max_gb: float = field(8.0, "maximum size of a phase's features, and of the folder on disk", unit="10⁹ bytes", gt=0)


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """Features that `--mode=features` writes and `--mode=probe` fits classifiers on."""

    stages: tuple[str, ...] = field((), "stages to extract; empty: all in mode features, the last in mode probe")
    pool: str = field("avg", "avg: averaged over locations; none: whole feature maps", choices=("avg", "none"))
    splits: tuple[str, ...] = field(
        ("train", "valid"), "splits to extract: train, valid, unlabelled, and test (for final results only)"
    )
    probes: tuple[str, ...] = field(
        ("logistic", "ridge", "knn"), "classifiers to fit in mode probe: logistic, ridge, knn"
    )


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Figures and logs in addition to the metrics."""

    figures: bool = field(True, "draw curves, confusion matrix, ROC and the images with the worst predictions")
    tensorboard: bool = field(True, "write TensorBoard events")
    num_worst: int = field(24, "number of images with the worst predictions to draw", ge=1)
    next_steps: tuple[str, ...] = field((), "lines printed at the end that suggest what to try next")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, or with `sweep` one run per combination of values."""

    seed: int = field(0, "seed of initialisation, batch order, label sampling, dropout and augmentation", ge=0)
    workdir: str | None = field(None, "folder of the run; None: runs/NAME with the name of the config file")
    task: str | None = field(
        None,
        "classification, segmentation, detection or a Task FILE.py:NAME (docs/extending.md); None: that of model.head",
    )
    metrics: tuple[str, ...] = field(
        (), "metrics beside those of the task, each FILE.py:NAME, a function (predictions, split) (docs/extending.md)"
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    strategy: StrategyConfig = dataclasses.field(default_factory=StrategyConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    cache: CacheConfig = dataclasses.field(default_factory=CacheConfig)
    features: FeaturesConfig = dataclasses.field(default_factory=FeaturesConfig)
    report: ReportConfig = dataclasses.field(default_factory=ReportConfig)
    sweep: Mapping = field(
        {},
        "dotted field -> list of values, or a label of yours -> {name: {dotted field: value}} for settings that belong "
        "together; one run per combination",
    )

    @property
    def folder(self) -> Path:
        """`workdir`, which the command line has set for every run."""
        assert self.workdir is not None
        return Path(self.workdir)

"""The fields of a run: every one with its type, unit, default and meaning.

They are used through `tljax.config`, which reads, checks and writes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tljax.config.fields import field
from tljax.config.phases import StrategyConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is learned from, and how it is split."""

    name: str = field(
        "digits",
        "source: digits, idx, fashion-mnist, or tfds:NAME; with masks or boxes scenes, coco, voc, masks, yolo, or "
        "tfds:NAME",
    )
    path: str | None = field(None, "folder of the files; for tfds:, its data_dir")
    options: Mapping = field({}, "what is particular to the source, e.g. {'train': 2000} for scenes (docs/data.md)")
    classes: tuple[int, ...] = field((), "classes to keep, relabelled 0.. in this order; empty keeps all")
    labels_per_class: int | None = field(
        None, "training pictures of each class, nested across budgets for one seed; None: all", ge=1
    )
    num_train: int | None = field(
        None, "training pictures, where they have no class of their own; nested likewise; None: all", ge=1
    )
    valid_fraction: float = field(0.2, "share of the training pictures held out for validation, per class", gt=0, lt=1)
    split: str = field(
        "fraction",
        "fraction: validation is held out of the training pictures; first_per_class: the first "
        "labels_per_class of each class of the training files are training, the first as many of the "
        "test files validation, the rest of the test files test",
        choices=("fraction", "first_per_class"),
    )
    unlabelled: int = field(
        0,
        "training pictures beyond labels_per_class that are kept without their labels, drawn at random whatever their "
        "class; -1: all of them",
        ge=-1,
    )
    image_size: int | None = field(
        None, "side of the square network input; None: what the weights were trained at", unit="pixels", ge=1
    )
    on_error: str = field(
        "error",
        "a file that cannot be read, or does not fit its annotation: error, or skip, which reports it and goes on",
        choices=("error", "skip"),
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Backbone, where its weights come from, and the head."""

    backbone: str = field("resnet8", "name of the network; python -m tljax.models lists them")
    options: Mapping = field({}, "fields of the network's variant that differ, e.g. {'drop_path': 0.1}")
    weights: str | None = field(
        None,
        "where pretrained weights come from: a name of the catalogue (python -m tljax.weights), a file "
        "(.safetensors, .pth, .h5), hf:OWNER/REPO, torchvision:NAME, keras:NAME, workdir:PATH (a finished run's best "
        "model), or recipe:CONFIG.py (a run that is made first if it does not exist)",
    )
    preprocess: str | None = field(
        None,
        "preprocessing, for weights that do not bring their own",
        choices=("caffe", "torch", "symmetric", "unit"),
    )
    in_channels: int = field(3, "channels of the input; the first convolution of RGB weights is adapted to them", ge=1)
    out_stage: str | None = field(None, "stage whose map feeds the head; later stages are not built; None: the last")
    head: str = field(
        "classifier",
        "what stands on the backbone, and with it the task: classifier; unet or fcn, segmentation; detector, detection",
        choices=("classifier", "unet", "fcn", "detector"),
    )
    head_options: Mapping = field({}, "what is particular to the head, e.g. {'upsample': 'bilinear'} (docs/models.md)")
    num_classes: int | None = field(None, "outputs of the head; None: the classes of the data", ge=1)
    pool: str = field(
        "avg", "what the classifier does with the map: global average, or flatten", choices=("avg", "flatten")
    )
    pool_size: int | None = field(
        None, "flatten: side of the grid that the map is averaged to first (torchvision's VGG: 7); None: as it is", ge=1
    )
    norm: str | None = field(
        None,
        "norm of the features before the classifier: batch standardises each channel (BatchNorm without scale and "
        "bias), layer is LayerNorm; None: as the network was published (layer for ConvNeXt, none for the others)",
        choices=("none", "batch", "layer"),
    )
    hidden: tuple[int, ...] = field((), "widths of hidden dense layers (ReLU) in the classifier")
    dropout: float = field(0.0, "dropout rate before each dense layer of the classifier", ge=0, lt=1)
    aux_weight: float = field(
        0.0,
        "weight in the loss of the auxiliary classifiers of googlenet (paper: 0.3) and inception_v3 (0.4); 0 builds "
        "none",
        ge=0,
    )
    remat: bool = field(False, "compute the inner maps of stages again in the backward pass: less memory, more time")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer; weight decay is decoupled (Loshchilov & Hutter 2019) and spares biases and norms."""

    name: str = field("adam", "optimizer", choices=("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop"))
    lr: float = field(1e-3, "peak learning rate", gt=0)
    schedule: str = field(
        "constant", "learning rate over a phase, after warm-up", choices=("constant", "cosine", "step")
    )
    warmup_epochs: float = field(0.0, "linear warm-up from 0, in every phase", unit="epochs", ge=0)
    step_epochs: tuple[float, ...] = field(
        (), "epochs of the phase at which schedule=step multiplies by step_factor", unit="epochs"
    )
    step_factor: float = field(0.1, "factor of schedule=step", gt=0, lt=1)
    weight_decay: float = field(0.0, "decoupled weight decay, times the learning rate, per step", ge=0)
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
        None, "largest global norm of the learning parameters' gradient; None: no clipping", gt=0
    )
    label_smoothing: float = field(0.0, "share of the target spread evenly over the classes", ge=0, lt=1)
    class_weights: tuple[float, ...] = field(
        (), "weight of each class in the cross-entropy, a weighted mean; empty: all alike"
    )
    l2: float = field(
        0.0,
        "weight of half the squared norm of the learning kernels in the loss (L2 regularisation, coupled); with l2_sp, "
        "of the new ones only",
        ge=0,
    )
    l2_sp: float = field(
        0.0,
        "weight of half the squared distance of the learning leaves from their source values in the loss (L2-SP, Li et "
        "al. 2018)",
        ge=0,
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    batch_size: int = field(32, "pictures per step, over all devices", ge=1)
    epochs: float = field(10.0, "length of the whole run, over all phases", unit="epochs", gt=0)
    eval_epochs: float = field(1.0, "time between validations (each is a checkpoint)", unit="epochs", gt=0)
    checkpoint_epochs: float | None = field(
        None, "time between further checkpoints, may be less than an epoch", unit="epochs", gt=0
    )
    patience_epochs: float | None = field(
        None, "a phase ends after so long without a better validation accuracy", unit="epochs", gt=0
    )
    grad_accum_steps: int = field(
        1, "parts of a batch that go through the network one after another: less memory", ge=1
    )
    sharding: str = field(
        "none",
        "none: every device has all parameters; fsdp: each has a part of the large ones and of the optimizer's "
        "state (ZeRO-3, FSDP), for models beyond one device's memory",
        choices=("none", "fsdp"),
    )
    compute_dtype: str = field(
        "float32", "type of the computation; parameters stay float32", choices=("float32", "bfloat16")
    )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Changes drawn anew each time a training picture is seen."""

    flip: bool = field(False, "mirror left and right with probability one half")
    crop_padding: int = field(0, "pad by so much and crop back at a random place", unit="pixels", ge=0)
    scale: tuple[float, float] = field((1.0, 1.0), "least and largest factor of a picture's size")
    rotate: float = field(0.0, "largest rotation either way", unit="degrees", ge=0, le=180)
    translate: float = field(0.0, "largest shift either way, as a share of the side", ge=0, lt=1)
    mosaic: float = field(
        0.0, "segmentation and detection: chance that a picture is put together from four of the batch", ge=0, le=1
    )
    color: float = field(
        0.0, "strength of two changes of colour or sharpness, as a share of FixMatch's ranges; 0: none", ge=0, le=1
    )
    strong_magnitude: float = field(
        1.0,
        "of the strong views of unlabelled pictures, as a share of FixMatch's ranges: an affine warp, two changes of "
        "colour or sharpness, and a grey square; 0: flip and crop only",
        ge=0,
        le=1,
    )


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """What is kept of frozen networks, so that it is computed once; only `views` changes what is learned."""

    storage: str = field(
        "disk",
        "disk: memory-mapped files under $TLJAX_CACHE/features, for later runs too; memory: for this process; none: "
        "everything is computed again",
        choices=("disk", "memory", "none"),
    )
    num_views: int = field(
        0,
        "with augmentation: pictures are drawn so many times, features of each are kept, and epoch e sees view "
        "e mod views; 0: drawn anew in every step, and nothing is kept",
        ge=0,
    )
    max_gb: float = field(8.0, "most that is kept, by a phase and by the folder on disk", unit="10⁹ bytes", gt=0)


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """What `--mode=features` writes and `--mode=probe` learns from."""

    stages: tuple[str, ...] = field((), "stages whose maps are taken; empty: all for features, the last for probe")
    pool: str = field("avg", "avg: averaged over the map; none: the whole map", choices=("avg", "none"))
    splits: tuple[str, ...] = field(
        ("train", "valid"), "splits that are written: train, valid, unlabelled, and test, which is for final use only"
    )
    probes: tuple[str, ...] = field(("logistic", "ridge", "knn"), "classifiers that probe fits: logistic, ridge, knn")


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """What is written beside the numbers."""

    figures: bool = field(True, "draw curves, confusion matrix, ROC and the most wrong pictures")
    tensorboard: bool = field(True, "write TensorBoard events")
    num_worst: int = field(24, "pictures on the sheet of the most wrong", ge=1)
    next_steps: tuple[str, ...] = field((), "lines printed at the end: what to try next")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, or with `sweep` one run per cell."""

    seed: int = field(0, "seed of initialisation, batch order, label sampling, dropout and augmentation", ge=0)
    workdir: str | None = field(None, "folder of the run; None: runs/NAME of the config file")
    task: str | None = field(
        None, "what the network is for: classification, segmentation or detection; None: that of model.head"
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
    sweep: Mapping = field({}, "dotted field -> values; one run per combination")

"""Transfer ImageNet's EfficientNet-Lite0 to the handwritten digits 5-9 with ten labels per class, in a minute.

Compares which features to use (averaged features of the last layer, or a grid of an earlier stage's), whether to train
the stage that gives them, and a small ResNet from scratch, over three draws of the labels. The weights come with a
package of requirements.txt: there is no download. docs/quickstart.md explains the result.
"""

from tljax import config

# Each learning rate is the best of 0.003, 0.01, 0.02 and 0.03 on validation, averaged over the seeds.
SCRATCH = {
    "model.backbone": "resnet8",
    "model.weights": None,
    "model.out_stage": None,
    "model.pool": "avg",
    "model.pool_size": None,
    "model.norm": None,
    "data.image_size": None,
    "strategy.name": "scratch",
    "optim.lr": 0.02,
}
LAST = {"model.out_stage": "top", "model.pool": "avg", "model.pool_size": None, "optim.lr": 0.02}
STAGE5 = {"optim.lr": 0.01}
TRAINED = {"strategy.name": "finetune", "optim.lr": 0.01}


def get_config():
    """Return the config."""
    c = config.default()
    c.data.name = "digits"
    c.data.classes = (5, 6, 7, 8, 9)
    c.data.labels_per_class = 10
    c.data.image_size = 64
    c.model.backbone = "efficientnet_lite0"
    c.model.weights = "efficientnet_lite0"
    c.model.out_stage = "stage5"
    c.model.pool = "flatten"
    c.model.pool_size = 4
    c.model.norm = "batch"
    c.strategy.name = "feature_extraction"
    c.strategy.lr_scale = 0.1
    c.optim.name = "nesterov"
    c.optim.schedule = "cosine"
    c.train.batch_size = 32
    c.train.epochs = 60
    c.train.eval_epochs = 10
    c.sweep = {
        "method": {
            "ResNet-8 from scratch": SCRATCH,
            "last features": LAST,
            "stage 5 features": STAGE5,
            "stage 5 trained": TRAINED,
        },
        "seed": [0, 1, 2],
    }
    c.report.next_steps = (
        "What each phase trains, and what it costs:",
        "  python run.py --config=configs/quickstart.py --mode=plan",
        "Fifty labels per class instead of ten:",
        "  python run.py --config=configs/quickstart.py --config.data.labels_per_class=50 --workdir=runs/fifty",
        "Your own images, in FOLDER/CLASS/*.jpg:",
        "  python run.py --config=configs/images.py --config.data.path=FOLDER",
    )
    return c

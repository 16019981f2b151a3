"""Train two tiny PyTorch networks for 20 steps and store the losses as golden values.

Writes, next to this file:
    {vgg,resnet}_init.safetensors      the starting weights, under torchvision's names
    trajectories.json                  {network: {recipe: 20 losses}} and "made_with"
    trajectories_float64.json          the same in double precision, from the same weights and data
    resnet_momentum_final_stats.json   bn1's running statistics after resnet/momentum

Step t (from 0) draws from numpy.random.default_rng([7, t]): first 16 images of 12x12 RGB (standard
normal, NHWC), then 16 labels. A loss is the minimized one (with label smoothing in
`adam_smooth`), averaged over the batch before the update of its step.

In float32 rounding can switch a ReLU or a max-pool, after which the losses of two correct
implementations may differ by up to 1e-2. The float64 file allows a close comparison.

Run with:
    pip install torch keras numpy safetensors
    python tests/golden/make_trajectories.py
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

os.environ["KERAS_BACKEND"] = "torch"
import keras

HERE = Path(__file__).resolve().parent
STEPS, BATCH, SIZE, CLASSES = 20, 16, 12, 5
DECAY, CLIP = 0.05, 0.5


class Vgg(nn.Module):
    """3x3 convolutions in blocks that each end in a 2x2 max-pool, flattened in NHWC order."""

    def __init__(self, blocks=((8,), (16, 16))):
        super().__init__()
        layers, channels = [], 3
        for block in blocks:
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels * (SIZE // 2 ** len(blocks)) ** 2, CLASSES)

    def forward(self, x):
        return self.fc(self.features(x).permute(0, 2, 3, 1).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or channels != width:
            shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """The CIFAR form of He et al. (2016): a 3x3 stem without pooling, one block per stage."""

    def __init__(self, widths=(8, 16, 32)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = nn.Sequential(BasicBlock(widths[0], widths[0], 1))
        self.layer2 = nn.Sequential(BasicBlock(widths[0], widths[1], 2))
        self.layer3 = nn.Sequential(BasicBlock(widths[1], widths[2], 2))
        self.fc = nn.Linear(widths[2], CLASSES)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def batch_norms(net):
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


def build(make):
    """Return a network with PyTorch's default initialization and random BatchNorm scales, biases and statistics."""
    torch.manual_seed(0)
    net = make()
    with torch.no_grad():
        for bn in batch_norms(net):
            bn.weight.copy_(1 + 0.1 * torch.randn_like(bn.weight))
            bn.bias.copy_(0.1 * torch.randn_like(bn.bias))
            bn.running_mean.copy_(0.1 * torch.randn_like(bn.running_mean))
            bn.running_var.copy_(1 + 0.2 * torch.rand_like(bn.running_var))
    return net


def state(net):
    return {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}


def batch(step):
    rng = np.random.default_rng([7, step])
    images = rng.standard_normal((BATCH, SIZE, SIZE, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, BATCH)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def sgd(params, **options):
    return torch.optim.SGD(params, lr=0.05, **options)


def momentum(params):
    return sgd(params, momentum=0.9)


def nesterov(params):
    return sgd(params, momentum=0.9, nesterov=True)


def adam(params):
    return torch.optim.Adam(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)


def adamw(params):
    """Return AdamW with decay only of tensors with more than one dimension: not of biases or BatchNorms."""
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)


class KerasRMSprop(torch.optim.Optimizer):
    """RMSprop of Keras (rho 0.9, epsilon 1e-7 inside the root) on torch's parameters and gradients."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-3})
        self.params = self.param_groups[0]["params"]
        kinds = {torch.float32: "float32", torch.float64: "float64"}
        self.variables = [keras.Variable(p.detach().numpy(), dtype=kinds[p.dtype]) for p in self.params]
        self.keras = keras.optimizers.RMSprop(learning_rate=1e-3)

    @torch.no_grad()
    def step(self):
        self.keras.apply([p.grad for p in self.params], self.variables)
        for p, variable in zip(self.params, self.variables, strict=True):
            p.copy_(variable.value)


def rmsprop(params):
    return KerasRMSprop(params)


# recipe: (optimiser, options of train)
RECIPES = {
    "sgd": (sgd, {}),
    "momentum": (momentum, {}),
    "nesterov": (nesterov, {}),
    "adam": (adam, {}),
    "adamw": (adamw, {}),
    "rmsprop": (rmsprop, {}),
    "momentum_clip": (momentum, {"clip": CLIP}),
    "momentum_decay": (momentum, {"decay": DECAY}),
    "adam_smooth": (adam, {"smoothing": 0.1}),
    "head_only": (momentum, {"clip": CLIP, "head_only": True}),
}


def train(net, optimiser, *, clip=None, decay=0.0, smoothing=0.0, head_only=False):
    """Train in place and return the loss before each step.

    clip       limit of the global norm of the gradients of the trainable parameters
    decay      decoupled: p <- p - lr * decay * p - (momentum update), on tensors of ndim > 1
    head_only  only `fc` trains, and every BatchNorm is in eval mode
    """
    net.train()
    if head_only:
        for bn in batch_norms(net):
            bn.eval()
        for name, p in net.named_parameters():
            p.requires_grad_(name.startswith("fc."))
    params = [p for p in net.parameters() if p.requires_grad]
    opt = optimiser(params)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=smoothing)
    losses = []
    for step in range(STEPS):
        images, labels = batch(step)
        loss = loss_fn(net(images.to(params[0].dtype)), labels)
        opt.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(params, clip)
        if decay:
            with torch.no_grad():
                for p in params:
                    if p.ndim > 1:
                        p.mul_(1 - opt.param_groups[0]["lr"] * decay)
        opt.step()
        losses.append(loss.item())
    return losses


def short(values):
    """Round to nine significant digits, which represent a float32 exactly."""
    return [float(f"{v:.9g}") for v in values]


def write_json(name, content):
    (HERE / name).write_text(json.dumps(content, indent=1) + "\n")


def main():
    torch.set_num_threads(1)
    made_with = {"torch": torch.__version__, "keras": keras.__version__, "numpy": np.__version__}
    single, double = {"made_with": made_with}, {"made_with": made_with}
    for name, make in {"vgg": Vgg, "resnet": ResNet}.items():
        save_file(state(build(make)), HERE / f"{name}_init.safetensors")
        single[name], double[name] = {}, {}
        for recipe, (optimiser, options) in RECIPES.items():
            double[name][recipe] = train(build(make).double(), optimiser, **options)
            net = build(make)
            single[name][recipe] = short(train(net, optimiser, **options))
            if (name, recipe) == ("resnet", "momentum"):
                stats = {
                    "made_with": made_with,
                    "note": "PyTorch normalises by the biased batch variance, but averages the "
                    "unbiased one (n / (n - 1)) into running_var.",
                    "bn1.running_mean": short(net.bn1.running_mean.tolist()),
                    "bn1.running_var": short(net.bn1.running_var.tolist()),
                }
    write_json("trajectories.json", single)
    write_json("trajectories_float64.json", double)
    write_json("resnet_momentum_final_stats.json", stats)


if __name__ == "__main__":
    main()

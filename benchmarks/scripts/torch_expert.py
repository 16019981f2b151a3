"""The same model in PyTorch by an expert: channels_last, features computed once, and the head fitted on them."""

import json
import time

import fashion
import torch
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def vgg16(weights):
    """Return the convolutions and pools, with ImageNet's weights."""
    layers = []
    channels = 3
    params = iter(fashion.load_convolutions(weights))
    for out in fashion.VGG16:
        if out == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, out, 3, padding=1)
        kernel, bias = map(torch.from_numpy, next(params))
        convolution.load_state_dict({"weight": kernel, "bias": bias})
        layers += [convolution, nn.ReLU(inplace=True)]
        channels = out
    return nn.Sequential(*layers).to(DEVICE, memory_format=torch.channels_last).eval()


def preprocess(images, size):
    """Return the network's input [N, 3, size, size] of gray images, in channels_last."""
    gray = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    resized = nn.functional.interpolate(gray, (size, size), mode="bilinear", align_corners=False)
    rgb = resized.expand(-1, 3, -1, -1) - torch.tensor(fashion.MEAN_BGR)[:, None, None]
    return rgb.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def features(base, images, autocast):
    """Return the features [N, c·h·w] of the frozen network for all images."""
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        return torch.cat([base(batch.to(DEVICE)).flatten(1).float() for batch in images.split(32)])


def main():
    """Train and print the last validation accuracy and the seconds of fitting the head."""
    args = fashion.options(precision="float32")
    (x_train, y_train), (x_valid, y_valid) = fashion.load_splits(args)
    base = vgg16(args.weights)
    autocast = args.precision == "bfloat16"
    x_train = features(base, preprocess(x_train, args.size), autocast)
    x_valid = features(base, preprocess(x_valid, args.size), autocast)
    y_train = torch.from_numpy(y_train).to(DEVICE)
    y_valid = torch.from_numpy(y_valid).to(DEVICE)
    start = time.perf_counter()
    head = nn.Linear(x_train.shape[1], 10).to(DEVICE)
    optimizer = torch.optim.RMSprop(head.parameters(), 1e-3, alpha=0.9, eps=1e-7)
    for _ in range(args.epochs):
        for indices in torch.randperm(len(x_train), device=DEVICE).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(x_train[indices]), y_train[indices]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (head(x_valid).argmax(1) == y_valid).float().mean().item()
    print(json.dumps({"accuracy": accuracy, "head_seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()

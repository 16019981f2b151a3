"""The same network in PyTorch by somebody who knows: channels last, each picture once, the head fitted on features."""

import json
import time

import fashion
import torch
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def vgg16(weights):
    """The convolutions and pools, with ImageNet's weights."""
    layers, channels, parameters = [], 3, iter(fashion.convolutions(weights))
    for out in fashion.VGG16:
        if out == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, out, 3, padding=1)
        kernel, bias = map(torch.from_numpy, next(parameters))
        convolution.load_state_dict({"weight": kernel, "bias": bias})
        layers += [convolution, nn.ReLU(inplace=True)]
        channels = out
    return nn.Sequential(*layers).to(DEVICE, memory_format=torch.channels_last).eval()


def prepared(images, size):
    """Grey pictures → what the network was trained on, channels last."""
    grey = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    resized = nn.functional.interpolate(grey, (size, size), mode="bilinear", align_corners=False)
    colour = resized.expand(-1, 3, -1, -1) - torch.tensor(fashion.MEAN_BGR)[:, None, None]
    return colour.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def features(base, images, autocast):
    """What the frozen network makes of every picture, [N, c·h·w]."""
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        return torch.cat([base(batch.to(DEVICE)).flatten(1).float() for batch in images.split(32)])


def main():
    """Trains and prints the last validation accuracy, and what fitting the head alone took."""
    args = fashion.options(precision="float32")
    (x_train, y_train), (x_valid, y_valid) = fashion.pictures(args)
    base, autocast = vgg16(args.weights), args.precision == "bfloat16"
    x_train = features(base, prepared(x_train, args.size), autocast)
    x_valid = features(base, prepared(x_valid, args.size), autocast)
    y_train, y_valid = torch.from_numpy(y_train).to(DEVICE), torch.from_numpy(y_valid).to(DEVICE)
    start = time.perf_counter()
    head = nn.Linear(x_train.shape[1], 10).to(DEVICE)
    optimizer = torch.optim.RMSprop(head.parameters(), 1e-3, alpha=0.9, eps=1e-7)
    for _ in range(args.epochs):
        for rows in torch.randperm(len(x_train), device=DEVICE).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(x_train[rows]), y_train[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (head(x_valid).argmax(1) == y_valid).float().mean().item()
    print(json.dumps({"accuracy": accuracy, "head_seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()

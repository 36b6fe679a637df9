"""Trains the demo's network anew.

`python -m attar.demo.train FOLDER` writes `digits.npz` and `digits.onnx` there. Needs PyTorch and
scikit-learn, which the demo itself does not, and some minutes of one core. The same versions on the same
machine give the same network; elsewhere the accuracy may differ by an image or two.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from attar.demo.digits import PARTS, enlarge

SEED = 0
EPOCHS = 40
BATCH = 50
PEAK_RATE = 0.01
WEIGHT_DECAY = 1e-3


def write_digits(path: Path) -> None:
    """scikit-learn's copy of the data set, shuffled once, as one compressed archive."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    np.savez_compressed(
        path,
        images=images.reshape(-1, 8, 8)[order].astype(np.uint8),
        labels=labels[order].astype(np.uint8),
    )


def build() -> Any:
    """The network, [n, 1, 32, 32] -> logits [n, 10]: depthwise-separable steps down, residual blocks between.

    31 M multiply-accumulates an image, 0.25 M parameters.
    """
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]

    def down(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            *conv(inputs, inputs, 3, stride=2, groups=inputs),
            nn.ReLU6(),
            *conv(inputs, outputs, 1),
            nn.ReLU6(),
        ]

    class Residual(nn.Module):  # type: ignore[misc]
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.body = nn.Sequential(*conv(channels, channels, 3), nn.ReLU6(), *conv(channels, channels, 3))
            self.activation = nn.ReLU6()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.activation(x + self.body(x))

    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(*conv(1, 32, 3), nn.ReLU6()),
            down1=nn.Sequential(*down(32, 64)),
            residual1=Residual(64),
            down2=nn.Sequential(*down(64, 96)),
            residual2=Residual(96),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(96, 10),
        )
    )


def warp(images: Any) -> Any:
    """Each image turned by up to 12 degrees, scaled by up to 10 %, shifted by up to an original pixel."""
    import torch

    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * np.deg2rad(12)
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.1
    shift = (torch.rand(count, 2) * 2 - 1) * 2 / 8  # the grid spans [-1, 1] over 8 original pixels
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos() * scale
    theta[:, 0, 1], theta[:, 1, 0] = -angle.sin() * scale, angle.sin() * scale
    theta[:, :, 2] = shift
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False, padding_mode="zeros")


def train(archive: Path) -> Any:
    """Train on the train part; print what the validation part says on the way."""
    import torch

    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    with np.load(archive) as arrays:
        images = torch.from_numpy(enlarge(arrays["images"].astype(np.float32) / 16)[:, None])
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    net = build()
    steps = PARTS["train"].stop // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, EPOCHS * steps)
    for epoch in range(EPOCHS):
        net.train()
        for rows in torch.randperm(PARTS["train"].stop).split(BATCH):
            outputs = net(warp(images[rows]))
            loss = torch.nn.functional.cross_entropy(outputs, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        part = PARTS["validation"]
        share = accuracy(net, images[part], labels[part])
        print(f"epoch {epoch + 1:2d}: loss {loss:.3f}, validation {share:.2%}")
    part = PARTS["test"]
    print(f"test {accuracy(net, images[part], labels[part]):.2%}")
    return net.eval()


def accuracy(net: Any, images: Any, labels: Any) -> float:
    """Share of the images whose largest logit is the label's."""
    import torch

    net.eval()
    with torch.no_grad():
        return float((net(images).argmax(1) == labels).float().mean())


def export(net: Any, path: Path) -> None:
    """Write the network with its BatchNorms as they are: folding them is the job that the demo shows.

    That takes the older exporter; the newer one folds them while it writes.
    """
    import torch

    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 32, 32),),
        str(path),
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )


def main(folder: Path) -> None:
    """Write the data and the trained network into `folder`."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    write_digits(folder / "digits.npz")
    export(train(folder / "digits.npz"), folder / "digits.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

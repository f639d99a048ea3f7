# SPDX-License-Identifier: 0BSD
"""Trains digits.onnx, an AlexNet in miniature, and writes the pictures that belong to it.

    pip install torch scikit-learn onnx pillow
    python examples/train_digits.py [FOLDER]         (about a minute on one core)

What lies beside this script is its output; torch is needed for nothing else. Like its model it has
five convolutions (two of them in two groups), local response normalisation, overlapping max-pools,
dropout and three dense layers, here for gray pictures of 16x16 and ten classes.

The pictures are the test set of the "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, UCI Machine Learning Repository, doi 10.24432/C50P49, licence CC BY 4.0), as scikit-learn
ships them, enlarged from 8x8 and 17 shades to 16x16 and 256.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

SIZE = 16
SEED = 7
EPOCHS = 120
PARTS = {"train": 1000, "search": 397, "holdout": 400}  # pictures; calib is drawn from train
CALIB = 150
LRN = {"size": 5, "alpha": 1e-2, "beta": 0.75, "k": 1.0}


def load_parts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Disjoint parts by name: images uint8 [N, 16, 16, 1], labels int64 [N]."""
    digits = load_digits()
    images = np.stack([enlarge(image) for image in digits.images])
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(labels))
    parts, start = {}, 0
    for name, count in PARTS.items():
        chosen = order[start : start + count]
        parts[name] = (images[chosen], labels[chosen])
        start += count
    parts["calib"] = tuple(array[:CALIB] for array in parts["train"])
    return parts


def enlarge(image: np.ndarray) -> np.ndarray:
    """float 0..16 [8, 8] -> uint8 [16, 16, 1]."""
    picture = Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8))
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR))[..., None]


def make_network() -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(**LRN),
        nn.Conv2d(16, 32, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.LocalResponseNorm(**LRN),
        nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(),
        nn.Conv2d(48, 48, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(48, 32, 3, padding=1), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 3 * 3, 96), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(96, 64), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(64, 10),
    )  # fmt: skip
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network


def as_input(images: np.ndarray) -> torch.Tensor:
    """What bdcc's preset `unit` does: pixel / 255, channels first."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def shift(batch: torch.Tensor) -> torch.Tensor:
    """Each picture moved by up to a pixel, for more to learn from."""
    padded = nn.functional.pad(batch, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(batch), 2))
    moved = [p[:, y : y + SIZE, x : x + SIZE] for p, (y, x) in zip(padded, offsets, strict=True)]
    return torch.stack(moved)


def train(network: nn.Sequential, images: np.ndarray, labels: np.ndarray) -> None:
    x, y = as_input(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    network.train()
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(shift(x[batch])), y[batch])
            loss.backward()
            optimizer.step()
        schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.4f}", end="\r", flush=True)
    print()
    network.eval()


def accuracy(network: nn.Sequential, images: np.ndarray, labels: np.ndarray) -> float:
    with torch.no_grad():
        found = network(as_input(images)).argmax(dim=1).numpy()
    return 100 * float((found == labels).mean())


def to_onnx(network: nn.Sequential) -> onnx.ModelProto:
    """The network with AlexNet's names, a softmax at its end, batch 1."""
    nodes, weights, current, convs, denses = [], [], "data", 0, 5
    for layer in network:
        inputs, attributes = [current], {}
        match layer:
            case nn.Conv2d():
                convs += 1
                op, name = "Conv", f"conv{convs}"
                attributes = {"group": layer.groups, "kernel_shape": [3, 3], "pads": [1] * 4}
            case nn.Linear():
                denses += 1
                op, name, attributes = "Gemm", f"fc{denses}", {"transB": 1}
            case nn.ReLU():
                op, name = "Relu", f"relu{nodes[-1].name[-1]}"
            case nn.MaxPool2d():
                op, name = "MaxPool", f"pool{convs}"
                attributes = {"kernel_shape": [3, 3], "strides": [2, 2]}
            case nn.LocalResponseNorm():
                op, name = "LRN", f"norm{convs}"
                attributes = {k: LRN[k] for k in ("size", "alpha", "beta")} | {"bias": LRN["k"]}
            case nn.Dropout():
                op, name = "Dropout", f"drop{denses}"
            case nn.Flatten():
                op, name = "Flatten", "flatten"
        if isinstance(layer, nn.Conv2d | nn.Linear):
            for suffix, values in (("weight", layer.weight), ("bias", layer.bias)):
                inputs.append(f"{name}_{suffix}")
                weights.append(numpy_helper.from_array(values.detach().numpy(), inputs[-1]))
        nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        current = f"{name}_out"
    nodes.append(helper.make_node("Softmax", [current], ["prob"], name="prob", axis=1))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 1, SIZE, SIZE])],
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def main(folder: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    parts = load_parts()
    network = make_network()
    train(network, *parts["train"])
    for name, (images, labels) in parts.items():
        print(f"{name}: {len(labels)} pictures, {accuracy(network, images, labels):.2f} %")
        if name != "train":
            np.savez_compressed(folder / f"digits_{name}.npz", images=images, labels=labels)
    model = to_onnx(network)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "digits.onnx")
    Image.fromarray(parts["holdout"][0][0, :, :, 0]).save(folder / "digit.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)

"""Top-1 accuracy of a CIFAR-10 ONNX model, with onnxruntime and numpy alone.

    python models/accuracy.py models/cifar10_resnet.onnx models/evaluation.npz

The .npz holds x (uint8, [images, 32, 32, 3]) and y (the class of each image).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime as ort

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def preprocess(images: np.ndarray) -> np.ndarray:
    """uint8 NHWC images as the normalised float32 NCHW input; the same as preprocess.yaml."""
    scaled = (images.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def scores(model: Path, images: np.ndarray, batch: int = 500) -> np.ndarray:
    """What the model says of uint8 images: [images, classes]."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    batches = [images[i : i + batch] for i in range(0, len(images), batch)]
    return np.concatenate(
        [np.asarray(session.run(None, {name: preprocess(b)})[0]) for b in batches]
    )


def accuracy(model: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """The percentage of the images whose highest score is at their label."""
    return float((scores(model, images).argmax(1) == labels).mean() * 100)


def main() -> None:
    parser = argparse.ArgumentParser(description="Top-1 accuracy of a CIFAR-10 ONNX model.")
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help=".npz with x (uint8 NHWC) and y")
    args = parser.parse_args()
    with np.load(args.data) as data:
        percent = accuracy(args.model, data["x"], data["y"])
        print(f"{percent:.2f} % of {len(data['x'])} images")


if __name__ == "__main__":
    main()

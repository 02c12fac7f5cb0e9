"""Parameter shapes of the models that the benchmarks step."""

from __future__ import annotations

Shape = tuple[int, ...]

GPT2_LAYERS = 12


def gpt2(layers: int = GPT2_LAYERS) -> list[Shape]:
    """GPT-2 124M, its output layer tied to the token embedding; fewer layers on demand."""
    width = 768
    norm: list[Shape] = [(width,), (width,)]
    attention: list[Shape] = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    feed_forward: list[Shape] = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *layers * [*norm, *attention, *norm, *feed_forward], *norm]


def mlp() -> list[Shape]:
    """Three layers of 256 x 256 with biases."""
    return 3 * [(256, 256), (256,)]


def resnet18() -> list[Shape]:
    """ResNet-18 for ImageNet: convolutions without bias, a weight and a bias for each batch norm."""

    def convolution(outputs: int, inputs: int, size: int) -> list[Shape]:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]

    shapes = convolution(64, 3, 7)
    inputs = 64
    for width in (64, 128, 256, 512):
        shapes += convolution(width, inputs, 3) + convolution(width, width, 3)
        if width != inputs:
            shapes += convolution(width, inputs, 1)
        shapes += convolution(width, width, 3) + convolution(width, width, 3)
        inputs = width
    return [*shapes, (1000, 512), (1000,)]

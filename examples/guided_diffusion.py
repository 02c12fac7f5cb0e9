"""Guidance at scales from 1 to 15 on a diffusion model that is trained here: does APG hold where CFG saturates?

Trains a class-conditional denoiser on scikit-learn's 8 x 8 digits with ferrostep's AdamW, then samples with CFG and
APG (arXiv 2410.02416) from the same noise. Writes a grid of images and prints for each scale: the share of pixels at
the limits of the range (of real digits as well), how many samples a classifier takes for their class, and the
Frechet distance between the classifier's features of samples and of real digits (lower is better).

    pip install ".[examples]" && python examples/guided_diffusion.py
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, UNet2DModel
from matplotlib import pyplot
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ferrostep.guidance import MomentumBuffer, apg, cfg, to_denoised
from ferrostep.optim import AdamW

CLASSES = 10
NO_CLASS = CLASSES  # the label of the unconditional prediction
SCALES = (1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0)
Combine = Callable[[Tensor, Tensor], Tensor]  # of the conditional and the unconditional denoised sample


class Digits(NamedTuple):
    """Images of shape (N, 1, 8, 8) from -1 to 1, and their classes."""

    images: Tensor
    labels: Tensor


def digits() -> tuple[Digits, Digits]:
    """Three quarters of the digits, and the rest."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    all_images = torch.from_numpy(images).float().view(-1, 1, 8, 8)[order] / 8 - 1
    all_labels = torch.from_numpy(labels)[order]
    cut = len(order) * 3 // 4
    return Digits(all_images[:cut], all_labels[:cut]), Digits(all_images[cut:], all_labels[cut:])


def make_denoiser() -> UNet2DModel:
    """A U-Net that predicts the velocity, with one class more than there are."""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        num_class_embeds=CLASSES + 1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=16,
    )


def make_scheduler() -> DDIMScheduler:
    """Takes denoised samples; nothing is clipped on the way, so that saturation shows."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def train_denoiser(data: Digits, steps: int, batch: int = 128) -> nn.Module:
    """The average of the weights over the last steps; one label in eight is hidden."""
    model, scheduler = make_denoiser(), make_scheduler()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.05)
    for _ in track(range(steps), "training the denoiser"):
        chosen = torch.randint(len(data.labels), (batch,))
        x0, labels = data.images[chosen], data.labels[chosen]
        labels = torch.where(torch.rand(batch) < 1 / 8, NO_CLASS, labels)
        noise, t = torch.randn_like(x0), torch.randint(scheduler.config.num_train_timesteps, (batch,))
        velocity = scheduler.get_velocity(x0, noise, t)
        predicted = model(scheduler.add_noise(x0, noise, t), t, class_labels=labels).sample
        optimizer.zero_grad()
        functional.mse_loss(predicted, velocity).backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
    return average.module.eval()


def train_classifier(data: Digits, steps: int, batch: int = 128) -> nn.Sequential:
    """A small convolutional network; all but its last layer gives the features."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )
    optimizer = AdamW(model.parameters(), lr=1e-3)
    for _ in track(range(steps), "training the classifier"):
        chosen = torch.randint(len(data.labels), (batch,))
        optimizer.zero_grad()
        functional.cross_entropy(model(data.images[chosen]), data.labels[chosen]).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def sample(model: nn.Module, noise: Tensor, labels: Tensor, combine: Combine, steps: int) -> Tensor:
    """Denoise, guided by `combine`, which sees denoised samples as in the paper."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    x, both = noise, torch.cat([labels, torch.full_like(labels, NO_CLASS)])
    for t in scheduler.timesteps:
        alpha = math.sqrt(scheduler.alphas_cumprod[t])
        sigma = math.sqrt(1 - scheduler.alphas_cumprod[t])
        twice = torch.cat([x, x])
        velocity = model(twice, t, class_labels=both).sample
        denoised = to_denoised(velocity, twice, prediction_type="v_prediction", alpha=alpha, sigma=sigma)
        x = scheduler.step(combine(*denoised.chunk(2)), t, x).prev_sample
    return x.clamp(-1, 1)


def guidances(scale: float, threshold: float, momentum: float) -> dict[str, Combine]:
    """What is compared."""
    buffer = MomentumBuffer(momentum)
    return {
        "CFG": lambda c, u: cfg(c, u, scale),
        "APG": lambda c, u: apg(c, u, scale, norm_threshold=threshold, momentum_buffer=buffer),
    }


def saturation(images: Tensor) -> float:
    """The share of pixels at the limits."""
    return float((images.abs() >= 1).float().mean())


def frechet(a: Tensor, b: Tensor) -> float:
    """Between Gaussians fitted to features of shape (N, D): |m - n|^2 + tr(A + B - 2 (AB)^(1/2))."""
    a, b = a.double(), b.double()
    means = (a.mean(0) - b.mean(0)).square().sum()
    one, other = torch.cov(a.T), torch.cov(b.T)
    roots = torch.linalg.eigvals(one @ other).real.clamp(min=0).sqrt().sum()
    return float(means + one.trace() + other.trace() - 2 * roots)


@torch.no_grad()
def judge(classifier: nn.Sequential, images: Tensor, labels: Tensor, real: Digits) -> tuple[float, float, float]:
    """Saturation, accuracy and Frechet distance."""
    right = (classifier(images).argmax(1) == labels).float().mean()
    features = classifier[:-1]
    return saturation(images), float(right), frechet(features(images), features(real.images))


def draw(grid: dict[tuple[float, str], Tensor], path: Path) -> None:
    """One row for each scale, one column for each guidance, ten digits in each."""
    scales, names = (list(dict.fromkeys(key[i] for key in grid)) for i in range(2))
    figure, axes = pyplot.subplots(len(scales), len(names), figsize=(6 * len(names), 0.8 * len(scales)), squeeze=False)
    for row, scale in zip(axes, scales, strict=True):
        for axis, name in zip(row, names, strict=True):
            axis.imshow(torch.cat(list(grid[scale, name][:, 0]), 1), cmap="gray", vmin=-1, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(f"{scale:g}", rotation=0, ha="right", va="center")
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--scales", type=float, nargs="+", default=SCALES)
    result.add_argument("--training-steps", type=int, default=2500, help="(default: %(default)s)")
    result.add_argument("--sampling-steps", type=int, default=32, help="(default: %(default)s)")
    result.add_argument("--samples", type=int, default=500, help="for each row (default: %(default)s)")
    result.add_argument("--threshold", type=float, default=1.0, help="APG's norm threshold (default: %(default)s)")
    result.add_argument("--momentum", type=float, default=-0.5, help="APG's (default: %(default)s)")
    result.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    result.add_argument("--output", type=Path, default=Path("guided_diffusion.png"), help="(default: %(default)s)")
    return result


def main() -> None:
    """Train, sample, judge."""
    arguments = parser().parse_args()
    torch.manual_seed(arguments.seed)
    train, held_out = digits()
    denoiser = train_denoiser(train, arguments.training_steps)
    classifier = train_classifier(train, max(1, arguments.training_steps // 4))
    noise = torch.randn(arguments.samples, 1, 8, 8)
    labels = torch.arange(arguments.samples) % CLASSES
    table = Table("scale", "guidance", "at the limits", "right class", "Frechet distance")
    table.add_row("", "held-out digits", *cells(judge(classifier, held_out.images, held_out.labels, train)))
    grid = {}
    for scale in track(arguments.scales, "sampling"):
        for name, combine in guidances(scale, arguments.threshold, arguments.momentum).items():
            images = sample(denoiser, noise, labels, combine, arguments.sampling_steps)
            table.add_row(f"{scale:g}", name, *cells(judge(classifier, images, labels, train)))
            grid[scale, name] = images[:CLASSES]
    draw(grid, arguments.output)
    Console().print(table)
    print(f"wrote {arguments.output}")


def cells(judged: tuple[float, float, float]) -> tuple[str, str, str]:
    """For the table."""
    saturated, right, distance = judged
    return f"{saturated:.1%}", f"{right:.1%}", f"{distance:.2f}"


if __name__ == "__main__":
    main()

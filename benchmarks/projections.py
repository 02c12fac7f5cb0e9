"""What is measured of guidance and of gradient projection: ours beside the peers and plain torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor, nn
from torchjd.aggregation import IMTLG, PCGrad
from torchjd.autojac import jac_to_grad, mtl_backward

from ferrostep import gradients, guidance
from ferrostep.optim import AdamW
from ferrostep.rl import ODICE, Transitions
from ferrostep.rl.networks import TwinValue
from ferrostep.rl.odice import conjugate

LATENTS = ((1, 4, 64, 64), (4, 16, 128, 128), (2, 16, 21, 60, 104))


class Contest(NamedTuple):
    """Contestants by name, of whom the first is what the others are compared with."""

    title: str
    contestants: dict[str, Callable[[], object]]


def guided(shape: Sequence[int], dtype: torch.dtype) -> list[Contest]:
    """Guidance of predictions of one shape."""
    c, u = (torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    buffer = guidance.MomentumBuffer(-0.75)
    title = f"{tuple(shape)}, {str(dtype).removeprefix('torch.')}"

    def in_torch() -> Tensor:
        return u + 7.5 * (c - u)

    return [
        Contest(
            f"CFG {title}",
            {
                "torch, u + w * (c - u)": in_torch,
                "torch.add(u, c - u, alpha=w)": lambda: torch.add(u, c - u, alpha=7.5),
                "torch.lerp": lambda: torch.lerp(u, c, 7.5),
                "ferrostep": lambda: guidance.cfg(c, u, 7.5),
            },
        ),
        Contest(
            f"CFG rescaled {title}",
            {
                "diffusers": lambda: rescale_noise_cfg(in_torch(), c, 0.7),
                "ferrostep": lambda: guidance.cfg(c, u, 7.5, rescale=0.7),
            },
        ),
        Contest(
            f"APG {title}",
            {
                "diffusers": lambda: normalized_guidance(c, u, 7.5, None, 0.0, 15.0),
                "ferrostep": lambda: guidance.apg(c, u, 7.5, norm_threshold=15.0, base="uncond"),
                "ferrostep, momentum": lambda: guidance.apg(c, u, 7.5, norm_threshold=15.0, momentum_buffer=buffer),
                "ferrostep, CFG": lambda: guidance.cfg(c, u, 7.5),
            },
        ),
    ]


def projected() -> list[Contest]:
    """Gradient projection on networks of several sizes."""
    twin = [tuple(p.shape) for p in TwinValue(17, (256, 256)).parameters()]
    works = {"twin 2 x 256, 141 thousand in 12": twin}
    works |= {"1 million in 6": 6 * [(167_000,)], "25 million in 60": 60 * [(417_000,)]}
    return [contest for title, shapes in works.items() for contest in on(title, shapes)]


def on(title: str, shapes: Sequence[tuple[int, ...]]) -> list[Contest]:
    """Of tensors of these shapes."""
    f, b = ([torch.randn(shape, generator=torch.Generator().manual_seed(i)) for shape in shapes] for i in range(2))
    sizes = [x.numel() for x in f]

    def plain() -> None:
        forward, backward = (torch.cat([x.flatten() for x in each]) for each in (f, b))
        kappa = (forward @ backward).item() / max((forward @ forward).item(), 1e-10)
        for x, part in zip(b, (backward - kappa * forward).split(sizes), strict=True):
            x.copy_(part.view_as(x))

    def foreach() -> None:
        along = torch.stack([x.sum() for x in torch._foreach_mul(f, b)]).sum()
        square = torch.stack(torch._foreach_norm(f)).square().sum()
        torch._foreach_add_(b, f, alpha=-float(along / square.clamp(min=1e-10)))

    def surgery() -> None:
        PCGrad()(torch.stack([torch.cat([x.flatten() for x in each]) for each in (f, b)]))

    return [
        Contest(
            f"projection, {title}",
            {
                "plain torch": plain,
                "torch._foreach": foreach,
                "ferrostep": lambda: gradients.orthogonal_(list(b), f),
            },
        ),
        Contest(f"PCGrad, {title}", {"torchjd": surgery, "ferrostep": lambda: gradients.pcgrad_([f, b])}),
        Contest(
            f"ema, {title}",
            {
                "torch._foreach_lerp_": lambda: torch._foreach_lerp_(b, f, 0.005),
                "ferrostep": lambda: gradients.ema_(b, f, 0.005),
            },
        ),
    ]


def multi_task_step() -> Contest:
    """From four losses of 1.05 million shared parameters to their combined gradient, after the forward pass."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(512, 1024), nn.Tanh(), nn.Linear(1024, 512), nn.Tanh())
    heads = nn.ModuleList(nn.Linear(512, 1) for _ in range(4))
    x, y = torch.randn(64, 512), torch.randn(4, 64)
    shared, params = list(trunk.parameters()), [*trunk.parameters(), *heads.parameters()]
    hidden = trunk(x)
    losses = [(head(hidden)[:, 0] - each).square().mean() for head, each in zip(heads, y, strict=True)]

    def passes() -> None:
        for loss in losses:
            torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)

    def theirs() -> None:
        mtl_backward(losses, features=[hidden], retain_graph=True, parallel_chunk_size=1)
        jac_to_grad(shared, IMTLG())

    def in_parallel() -> None:
        mtl_backward(losses, features=[hidden], retain_graph=True)
        jac_to_grad(shared, IMTLG())

    return Contest(
        "IMTL-G, 4 losses, 1 million shared",
        {
            "torchjd": theirs,
            "torchjd, vmap": in_parallel,
            "ferrostep": lambda: gradients.backward(losses, params, "imtl_g", retain_graph=True),
            "(four passes of autograd alone)": passes,
        },
    )


def value_step() -> Contest:
    """O-DICE's value step, forward and backward passes included: the agent, and the official formula in torch."""
    generator = torch.Generator().manual_seed(0)
    s, s2 = (torch.randn(256, 17, generator=generator) for _ in range(2))
    batch = Transitions(s, torch.zeros(256, 6), torch.randn(256, generator=generator), s2, torch.zeros(256))
    agent = ODICE(17, 6, value_optimizer=lambda params: AdamW(params, lr=2e-4, weight_decay=0.0))

    def ours() -> None:
        agent._value_step(batch, batch.rewards)
        gradients.ema_(agent.target.parameters(), agent.value.parameters(), 0.005)

    net = TwinValue(17, (256, 256))
    target, adam = copy.deepcopy(net).requires_grad_(False), torch.optim.Adam(net.parameters(), lr=2e-4)

    def official() -> None:
        params = list(net.parameters())
        values = net(s)
        with torch.no_grad():
            now, following = target(s).amin(0), target(s2).amin(0)
        forward = 0.6 * conjugate("pearson_chi2", batch.rewards + 0.99 * following - values).mean()
        backward = 0.6 * conjugate("pearson_chi2", batch.rewards + 0.99 * net(s2) - now).mean()
        f, b, e = (
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=True)])
            for loss in (forward, backward, 0.4 * values.mean())
        )
        kappa = (f @ b).item() / max((f @ f).item(), 1e-10)
        parts = (e + f + b - kappa * f).split([p.numel() for p in params])
        for p, part in zip(params, parts, strict=True):
            p.grad = part.view_as(p)
        adam.step()
        with torch.no_grad():
            for t, p in zip(target.parameters(), params, strict=True):
                t.mul_(0.995).add_(p, alpha=0.005)

    return Contest("O-DICE's value step", {"the official formula in torch": official, "ferrostep": ours})

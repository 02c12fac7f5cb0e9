"""Rules that no peer has, or none as a plain step, written in torch as a paper's reader would."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor
from torch.optim import Optimizer

from ferrostep.optim import AdamW


class Sophia(Optimizer):
    """The clipped step of Sophia, tensor by tensor."""

    def __init__(self, params: Iterable[Tensor], lr: float, beta1: float, gamma: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "beta1": beta1, "gamma": gamma, "weight_decay": weight_decay})
        for p in self.param_groups[0]["params"]:
            self.state[p] = {"exp_avg": torch.zeros_like(p), "hessian": torch.rand_like(p)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Step."""
        group = self.param_groups[0]
        for p in group["params"]:
            m, h = self.state[p]["exp_avg"], self.state[p]["hessian"]
            m.lerp_(p.grad, 1 - group["beta1"])
            update = (m / (group["gamma"] * h).clamp(min=1e-12)).clamp(-1, 1)
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


class SophiaRefresh(Optimizer):
    """Sophia's average of squared gradients of sampled labels, tensor by tensor: what comes between its steps."""

    def __init__(self, params: Iterable[Tensor], beta2: float, bs: float) -> None:
        super().__init__(params, {"beta2": beta2, "bs": bs})
        for p in self.param_groups[0]["params"]:
            self.state[p] = {"hessian": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Refresh."""
        beta2, bs = self.param_groups[0]["beta2"], self.param_groups[0]["bs"]
        for p in self.param_groups[0]["params"]:
            self.state[p]["hessian"].mul_(beta2).addcmul_(p.grad, p.grad, value=(1 - beta2) * bs)


class ClippedAdamW(AdamW):
    """Our AdamW after torch's clipping."""

    def __init__(self, params: Iterable[Tensor], max_norm: float, **options: Any) -> None:
        super().__init__(params, **options)
        self.max_norm = max_norm

    def step(self, closure: Any = None) -> None:
        """Clip and step."""
        params = [p for group in self.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(params, self.max_norm, foreach=True)
        super().step()


class NIGT(Optimizer):
    """NIGT with a constant rate, by torch's functions for lists."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the parameters, which are where gradients are to be taken."""
        for group in self.param_groups:
            params, grads, lr, beta = group["params"], [p.grad for p in group["params"]], group["lr"], group["momentum"]
            before = self.state[params[0]].get("scale", 0.0)
            momenta = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
            torch._foreach_add_(params, momenta, alpha=before * beta / (1 - beta))  # back to the point
            torch._foreach_lerp_(momenta, grads, 1 - beta if before else 1.0)
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(momenta))).item()
            self.state[params[0]]["scale"] = scale = lr / norm
            torch._foreach_add_(params, momenta, alpha=-scale / (1 - beta))  # and as far beyond the next


class STORM(Optimizer):
    """Normalized STORM with a constant rate, by torch's functions for lists, from gradients that stay as they are."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.before = [torch.rand_like(p) for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Step."""
        for group in self.param_groups:
            params, grads = group["params"], [p.grad for p in group["params"]]
            momenta = [self.state[p].setdefault("momentum_buffer", p.grad.clone()) for p in params]
            torch._foreach_sub_(momenta, self.before)
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, grads)
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(momenta))).item()
            torch._foreach_add_(params, momenta, alpha=-group["lr"] / norm)


class EGD(Optimizer):
    """Exponentiated gradient descent, tensor by tensor."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Step."""
        lr = self.param_groups[0]["lr"]
        for p in self.param_groups[0]["params"]:
            p.mul_(torch.exp(p.sign().mul_(p.grad).mul_(-lr)))


class Frugal(Optimizer):
    """FRUGAL's columns with AdamW and signs, tensor by tensor: the residual is what is left of the gradient."""

    def __init__(self, params: Iterable[Tensor], lr: float, density: float) -> None:
        super().__init__(params, {"lr": lr, "density": density})
        for p in self.param_groups[0]["params"]:
            columns = torch.randperm(p.shape[-1])[: round(density * p.shape[-1])]
            moments = [torch.zeros_like(p[..., columns]) for _ in range(2)]
            self.state[p] = {"columns": columns, "moments": moments, "step": 0}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Step."""
        lr = self.param_groups[0]["lr"]
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["step"] += 1
            columns, (m, v) = state["columns"], state["moments"]
            chosen = p.grad[..., columns]
            m.lerp_(chosen, 0.1)
            v.mul_(0.999).addcmul_(chosen, chosen, value=0.001)
            root = v.sqrt().div_((1 - 0.999 ** state["step"]) ** 0.5).add_(1e-8)
            residual, update = p.grad.clone(), torch.zeros_like(p)
            residual[..., columns] -= chosen
            update[..., columns] = m.div(1 - 0.9 ** state["step"]).div_(root)
            p.add_(update, alpha=-lr).add_(residual.sign_(), alpha=-lr)


class OptimisticDescent(Optimizer):
    """``p -= lr * (2 * g - prev_grad)``, all tensors at once."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.before = [torch.zeros_like(p) for p in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Step."""
        params, lr = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        grads = [p.grad for p in params]
        ahead = torch._foreach_mul(grads, 2.0)
        torch._foreach_sub_(ahead, self.before)
        torch._foreach_add_(params, ahead, alpha=-lr)
        torch._foreach_copy_(self.before, grads)


class AuON(Optimizer):
    """The paper's AuON, tensor by tensor."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        for p in self.param_groups[0]["params"]:
            self.state[p] = {"momentum_buffer": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Step."""
        group = self.param_groups[0]
        for p in group["params"]:
            m = self.state[p]["momentum_buffer"]
            m.lerp_(p.grad, 1 - group["momentum"])
            u = p.grad.lerp(m, group["momentum"])
            x = u / (u.norm() + 1e-7)
            r = x.cosh().square().mean().sqrt()
            tall = max(1.0, p.shape[0] / (p.numel() / p.shape[0])) ** 0.5 if p.ndim > 1 else 1.0
            p.add_(x / (r + 1e-8), alpha=-group["lr"] * tall)


def direction(u: Tensor) -> Tensor:
    """The gradient of Lion-K's l2 norm."""
    return u / u.norm()


def sophia_h_of_pytorch_optimizer(params: Iterable[Tensor], **options: Any) -> Optimizer:
    """Their SophiaH, given a Hessian once, so that its steps estimate none."""
    params = list(params)
    made: Optimizer = pytorch_optimizer.SophiaH(params, update_period=10**9, **options)
    made.step(hessian=[torch.rand_like(p) for p in params])  # type: ignore[call-arg]
    return made

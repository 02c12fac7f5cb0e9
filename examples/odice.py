"""O-DICE on offline data that are made here: does the orthogonal gradient beat the true and the semi gradient?

Scripted policies of mixed quality act in gymnasium's Pendulum (or, with `--task hopper`, in MuJoCo's Hopper), and
agents learn from what they did alone: O-DICE (arXiv 2402.00348) with each of the gradients, and behaviour cloning.
Prints the mean return over the seeds with its 95% interval, and draws the learning curves. All seeds train on the same
data, so the intervals tell nothing of how other data would change the means. `--data` takes a file of your own instead
(NPZ, or HDF5 by D4RL or Minari) with actions as the task's environment has them. Of a file without `next_observations`
it needs `timeouts`, or the ends of episodes by time limits are taken for steps into the next one.

    pip install ".[rl]" && python examples/odice.py
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from matplotlib import pyplot
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from ferrostep.demo.report import half_interval
from ferrostep.optim import AdamW
from ferrostep.rl import ODICE, Transitions
from ferrostep.rl.networks import GaussianPolicy

METHODS = ("orthogonal", "semi", "true", "cloning")
Behaviour = Callable[[np.ndarray, int], np.ndarray]  # from observation and time to an action from -1 to 1


@dataclass(frozen=True)
class Task:
    """An environment, and policies to make data with: pairs of a policy and its number of episodes."""

    name: str
    behaviours: Callable[[np.random.Generator], list[tuple[Behaviour, int]]]


def pendulum(rng: np.random.Generator) -> list[tuple[Behaviour, int]]:
    """Swinging up with energy, then balancing; from noise alone to almost none."""

    def controller(noise: float) -> Behaviour:
        def act(observation: np.ndarray, time: int) -> np.ndarray:
            cos, sin, speed = observation
            angle = math.atan2(sin, cos)
            energy = speed**2 / 6 + 5 * (cos - 1)  # 0 at rest on top
            torque = -8 * angle - 2 * speed if abs(angle) < 0.6 else -math.copysign(2, speed * energy)
            return np.clip(np.array([torque / 2]) * (1 - noise) + noise * rng.uniform(-1, 1, 1), -1, 1)

        return act

    return [(controller(1.0), 40), (controller(0.7), 40), (controller(0.3), 20)]


def hopper(rng: np.random.Generator) -> list[tuple[Behaviour, int]]:
    """Periodic movements: the best of a random search, others of it, and noise."""

    def gait(parameters: np.ndarray, noise: float) -> Behaviour:
        level, size, phase, rate = parameters[:3], parameters[3:6], parameters[6:9], parameters[9]

        def act(observation: np.ndarray, time: int) -> np.ndarray:
            movement = level + size * np.sin(rate * time + phase)
            return np.clip(movement + noise * rng.normal(size=3), -1, 1)

        return act

    with gymnasium.make("Hopper-v5") as environment:
        found = []
        for _ in range(300):
            parameters = np.concatenate(
                [rng.uniform(-1, 1, 6), rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.02, 0.3, 1)]
            )
            found.append((play(environment, gait(parameters, 0.0), 0)[1], parameters))
    found.sort(key=lambda each: -each[0])
    return [(gait(parameters, 0.1), 40) for _, parameters in found[:5]] + [
        (gait(parameters, 0.3), 10) for _, parameters in found[5:60:3]
    ]


TASKS = {"pendulum": Task("Pendulum-v1", pendulum), "hopper": Task("Hopper-v5", hopper)}


def play(environment: gymnasium.Env, act: Behaviour, seed: int) -> tuple[list[tuple], float]:
    """An episode: its transitions and its return. Actions from -1 to 1 become the environment's."""
    high = environment.action_space.high
    observation, _ = environment.reset(seed=seed)
    rows, total, ended, time = [], 0.0, False, 0
    while not ended:
        action = act(observation, time)
        following, reward, terminal, cut = environment.step((action * high).astype(np.float32))[:4]
        rows.append((observation, action, reward, following, terminal))
        observation, total, ended, time = following, total + float(reward), terminal or cut, time + 1
    return rows, total


def make_data(task: Task, seed: int) -> tuple[Transitions, list[float]]:
    """What the behaviours did, and the returns of their episodes."""
    rng = np.random.default_rng(seed)
    rows, returns = [], []
    with gymnasium.make(task.name) as environment:
        for act, episodes in task.behaviours(rng):
            for _ in range(episodes):
                more, total = play(environment, act, seed=1000 + len(returns))
                rows += more
                returns.append(total)
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    return Transitions.of(dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))), returns


def load_data(path: Path, task: Task) -> Transitions:
    """The file's transitions, with actions divided by the environment's limits."""
    data = Transitions.load(path)
    with gymnasium.make(task.name) as environment:
        spaces = {"observations": environment.observation_space, "actions": environment.action_space}
    for name, space in spaces.items():
        size = getattr(data, name).shape[1]
        if (size,) != space.shape:
            raise ValueError(f"{name} have {size} numbers, expected {space.shape[0]} for {task.name}")
    actions = data.actions / torch.from_numpy(spaces["actions"].high)
    if bool((actions.abs() > 1 + 1e-4).any()):
        raise ValueError(f"actions go beyond the limits of {task.name}: {spaces['actions'].high.tolist()}")
    return replace(data, actions=actions.clamp(-1, 1))


def evaluate(environments: SyncVectorEnv, act: Callable[[Tensor], Tensor], seed: int) -> float:
    """The mean return of one episode in each environment."""
    high = environments.single_action_space.high
    observations, _ = environments.reset(seed=seed)
    totals, running = np.zeros(environments.num_envs), np.ones(environments.num_envs, bool)
    while running.any():
        actions = act(torch.from_numpy(observations).float()).numpy()
        observations, rewards, terminals, cuts, _ = environments.step((actions * high).astype(np.float32))
        totals += rewards * running
        running &= ~(terminals | cuts)
    return float(totals.mean())


class Cloning:
    """The policy of O-DICE, with all weights 1."""

    def __init__(self, observations: int, actions: int, seed: int, optimizer: Callable[..., torch.optim.Optimizer]):
        torch.manual_seed(seed)
        self.policy = GaussianPolicy(observations, actions, (256, 256))
        self.optimizer = optimizer(self.policy.parameters())
        self.generator = torch.Generator().manual_seed(seed)

    def fit(self, data: Transitions, steps: int) -> None:
        """Maximize the likelihood."""
        for _ in range(steps):
            batch = data.sample(256, self.generator)
            self.optimizer.zero_grad()
            (-self.policy.log_prob(batch.observations, batch.actions).mean()).backward()
            self.optimizer.step()

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """The mean."""
        return self.policy(observations).mean


def make_agent(method: str, data: Transitions, seed: int, arguments: argparse.Namespace) -> ODICE | Cloning:
    """Any of METHODS, with ferrostep's AdamW."""
    sizes = data.observations.shape[1], data.actions.shape[1]
    optimizer = functools.partial(AdamW, lr=arguments.lr, weight_decay=0.0)
    if method == "cloning":
        return Cloning(*sizes, seed, optimizer)
    return ODICE(
        *sizes,
        gradient=method,
        seed=seed,
        lam=arguments.lam,
        eta=arguments.eta,
        value_optimizer=optimizer,
        policy_optimizer=optimizer,
    )


def normalized(data: Transitions, returns: list[float]) -> tuple[Transitions, Tensor, Tensor]:
    """Standardized observations, and rewards of which best and worst episode are 1000 apart, as in the paper."""
    mean, std = data.observations.mean(0), data.observations.std(0) + 1e-3
    spread = max(returns) - min(returns) if returns else float(data.rewards.std()) * 1000
    scaled = replace(
        data,
        observations=(data.observations - mean) / std,
        next_observations=(data.next_observations - mean) / std,
        rewards=data.rewards * (1000 / spread if spread > 0 else 1),
    )
    return scaled, mean, std


def run(arguments: argparse.Namespace, data: Transitions, returns: list[float]) -> dict[str, np.ndarray]:
    """Mean returns, shape (seeds, evaluations), of every method."""
    scaled, mean, std = normalized(data, returns)
    name, part = TASKS[arguments.task].name, arguments.steps // arguments.evaluations
    environments = SyncVectorEnv([functools.partial(gymnasium.make, name) for _ in range(arguments.episodes)])
    curves = {method: np.zeros((arguments.seeds, arguments.evaluations)) for method in arguments.methods}
    with Progress() as progress:
        bar = progress.add_task("training", total=len(curves) * arguments.seeds * arguments.evaluations)
        for method, curve in curves.items():
            for seed in range(arguments.seeds):
                agent = make_agent(method, scaled, seed, arguments)
                for i in range(arguments.evaluations):
                    agent.fit(scaled, part)
                    act = agent.act
                    curve[seed, i] = evaluate(environments, lambda x, act=act: act((x - mean) / std), seed=100 * seed)
                    progress.update(bar, advance=1, description=f"{method}, seed {seed}")
    environments.close()
    return curves


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the 95% interval."""
    return float(values.mean()), half_interval(values.tolist())


def row(name: str, values: np.ndarray) -> tuple[str, str, str]:
    """For the table."""
    mean, half = interval(values)
    return name, f"{mean:.0f}", f"{mean - half:.0f} to {mean + half:.0f}"


def draw(curves: dict[str, np.ndarray], behaviour: float, steps: int, path: Path) -> None:
    """Means and intervals by the number of updates."""
    figure, axis = pyplot.subplots(figsize=(7, 4))
    for method, curve in curves.items():
        x = np.linspace(0, steps, curve.shape[1] + 1)[1:]
        means, halves = np.array([interval(column) for column in curve.T]).T
        axis.plot(x, means, label=method)
        axis.fill_between(x, means - halves, means + halves, alpha=0.2)
    axis.axhline(behaviour, color="gray", linestyle="--", label="behaviour")
    axis.set_xlabel("updates")
    axis.set_ylabel("return")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--task", choices=TASKS, default="pendulum")
    result.add_argument("--data", type=Path, help="a file of transitions (default: they are made)")
    result.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    result.add_argument("--seeds", type=int, default=5, help="(default: %(default)s)")
    result.add_argument("--steps", type=int, default=3000, help="updates of each agent (default: %(default)s)")
    result.add_argument("--evaluations", type=int, default=6, help="on the way (default: %(default)s)")
    result.add_argument("--episodes", type=int, default=10, help="of each evaluation (default: %(default)s)")
    result.add_argument("--lam", type=float, default=0.6, help="O-DICE's lambda (default: %(default)s)")
    result.add_argument("--eta", type=float, default=1.0, help="O-DICE's eta (default: %(default)s)")
    result.add_argument("--lr", type=float, default=1e-3, help="(default: %(default)s)")
    result.add_argument("--output", type=Path, default=Path("odice.png"), help="(default: %(default)s)")
    return result


def main() -> None:
    """Make data, train, print and draw."""
    arguments = parser().parse_args()
    torch.set_num_threads(1)  # these networks are too small for more
    task, made = TASKS[arguments.task], []
    if arguments.data is None:
        data, made = make_data(task, seed=0)
    else:
        try:
            data = load_data(arguments.data, task)
        except ValueError as error:
            raise SystemExit(f"{arguments.data}: {error}") from error
    curves = run(arguments, data, made)
    table = Table("policy", "mean return", "95% interval")
    behaviour = float(np.mean(made)) if made else math.nan
    if made:
        table.add_row(*row("behaviour (over its episodes)", np.array(made)))
        best = np.sort(made)[-max(1, len(made) // 10) :]
        table.add_row("its best tenth", f"{best.mean():.0f}", "")
    for method, curve in curves.items():
        table.add_row(*row(method, curve[:, -1]))
    Console().print(table)
    draw(curves, behaviour, arguments.steps, arguments.output)
    print(f"{len(data):,} transitions; wrote {arguments.output}")


if __name__ == "__main__":
    main()

"""What O-DICE's projection changes, where the true values are known: a gridworld with a wall.

The data hold every move from every cell once; V is a small network on the cell's coordinates, so that what it learns of
one cell changes others, as in larger problems. Learns V with the orthogonal, the semi and the true gradient
(arXiv 2402.00348), reads the policy off their weights, and compares it with what dynamic programming gives. Writes a
figure of the values.

    pip install ".[rl]" && python examples/odice_gridworld.py
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ferrostep.optim import AdamW
from ferrostep.rl import ODICE, Transitions
from ferrostep.rl.odice import weight

SIDE, GOAL, DISCOUNT = 7, (6, 6), 0.9
WALL = {(3, y) for y in range(1, SIDE)}  # open at y = 0 only
MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1))
CELLS = [(x, y) for x in range(SIDE) for y in range(SIDE) if (x, y) not in WALL]
INDEX = {cell: i for i, cell in enumerate(CELLS)}


def step(cell: tuple[int, int], move: tuple[int, int]) -> tuple[tuple[int, int], float]:
    """The next cell and the reward: 1 for entering the goal."""
    following = cell[0] + move[0], cell[1] + move[1]
    following = following if following in INDEX else cell
    return following, float(following == GOAL)


def values_of(policy: np.ndarray) -> np.ndarray:
    """Exact values of a policy, shape (cells, moves); the goal ends the episode."""
    transition, reward = np.zeros((len(CELLS), len(CELLS))), np.zeros(len(CELLS))
    for cell, i in INDEX.items():
        for move, share in zip(MOVES, policy[i], strict=True):
            following, gain = step(cell, move)
            if cell != GOAL:
                reward[i] += share * gain
                transition[i, INDEX[following]] += share * (following != GOAL)
    return np.linalg.solve(np.eye(len(CELLS)) - DISCOUNT * transition, reward)


def greedy(values: np.ndarray) -> np.ndarray:
    """The policy that takes the best next cell by the values."""
    gains = np.array(
        [
            [step(c, m)[1] + DISCOUNT * (step(c, m)[0] != GOAL) * values[INDEX[step(c, m)[0]]] for m in MOVES]
            for c in CELLS
        ]
    )
    return np.eye(len(MOVES))[gains.argmax(1)]


def optimal() -> np.ndarray:
    """The values of the best policy, by policy iteration."""
    values = np.zeros(len(CELLS))
    while True:
        better = values_of(greedy(values))
        if np.allclose(better, values):
            return values
        values = better


def data() -> tuple[Transitions, np.ndarray, np.ndarray]:
    """Every move from every cell but the goal, once; with the cells' and the moves' numbers."""
    rows = [(c, k, *step(c, m)) for c in CELLS if c != GOAL for k, m in enumerate(MOVES)]
    now, moves, following, rewards = zip(*rows, strict=True)
    arrays = {
        "observations": inputs(now),
        "actions": np.array(MOVES)[list(moves)],
        "rewards": np.array(rewards),
        "next_observations": inputs(following),
        "terminals": np.array([cell == GOAL for cell in following]),
    }
    return Transitions.of(arrays), np.array([INDEX[c] for c in now]), np.array(moves)


def inputs(cells: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> np.ndarray:
    """Coordinates from -1 to 1."""
    return np.array(cells) / (SIDE - 1) * 2 - 1


def learn(gradient: str, seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """V of every cell, and the policy that its weights give."""
    transitions, cells, moves = data()
    make = functools.partial(AdamW, lr=1e-3, weight_decay=0.0)
    agent = ODICE(
        2, 2, gradient=gradient, discount=DISCOUNT, reward_scale=10.0, lam=0.7, seed=seed,
        value_hidden=(32, 32), policy_hidden=(8,), value_optimizer=make, policy_optimizer=make,
    )  # fmt: skip
    agent.fit(transitions, steps, batch_size=64)
    with torch.no_grad():
        values = agent.value(torch.from_numpy(inputs(CELLS)).float()).mean(0)
        after = agent.value(transitions.next_observations).mean(0)
        now = values[torch.from_numpy(cells)]
        advantage = 10 * transitions.rewards + DISCOUNT * (1 - transitions.terminals) * after - now
        weights = weight("pearson_chi2", advantage, form="paper").numpy()
    policy = np.full((len(CELLS), len(MOVES)), 1e-9)
    np.add.at(policy, (cells, moves), weights)
    return values.numpy() / 10, policy / policy.sum(1, keepdims=True)


def draw(maps: dict[str, np.ndarray], path: Path) -> None:
    """The values of the cells."""
    figure, axes = pyplot.subplots(1, len(maps), figsize=(3.2 * len(maps), 3.2))
    for axis, (title, values) in zip(axes, maps.items(), strict=True):
        grid = np.full((SIDE, SIDE), np.nan)
        for (x, y), value in zip(CELLS, values, strict=True):
            grid[y, x] = value
        figure.colorbar(axis.imshow(grid, origin="lower"), ax=axis, shrink=0.8)
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Learn, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="updates (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("odice_gridworld.png"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    best, start = optimal(), np.array([c != GOAL for c in CELLS])
    random = values_of(np.full((len(CELLS), len(MOVES)), 1 / len(MOVES)))
    table = Table("gradient", "policy's value", "correlation of V with the best values")
    table.add_row("(best policy)", f"{best[start].mean():.3f}", "")
    table.add_row(
        "(random policy)", f"{random[start].mean():.3f}", f"{np.corrcoef(random[start], best[start])[0, 1]:.3f}"
    )
    maps = {"best values": best, "random policy": random}
    runs = [(gradient, seed) for gradient in ("orthogonal", "semi", "true") for seed in range(arguments.seeds)]
    found: dict[str, list[tuple[float, float]]] = {}
    for gradient, seed in track(runs, "learning"):
        values, policy = learn(gradient, seed, arguments.steps)
        correlation = np.corrcoef(values[start], best[start])[0, 1]
        found.setdefault(gradient, []).append((values_of(policy)[start].mean(), correlation))
        maps[gradient] = values
    for gradient, results in found.items():
        quality, correlation = np.array(results).T
        table.add_row(gradient, *(f"{x.mean():.3f} ({x.min():.3f} to {x.max():.3f})" for x in (quality, correlation)))
    Console().print(table)
    draw(maps, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()

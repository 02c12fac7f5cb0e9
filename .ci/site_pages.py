"""Pages of the documentation site that are made of what stands elsewhere, and its table of contents.

A page for each optimizer comes from its class, one for each public package from its names, two from files beside
docs/. mkdocs calls the `on_` functions.
"""

import importlib
import inspect
import os
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import ferrostep
from ferrostep import optim

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BESIDE = {"benchmarks.md": ROOT / "benchmarks" / "README.md", "contributing.md": ROOT / "CONTRIBUTING.md"}
"""Pages that are files beside docs/."""
STORAGE: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    'bfloat16, `rounding="kahan"`': (torch.bfloat16, {"rounding": "kahan"}),
    'bfloat16, `master_weights="split"`': (torch.bfloat16, {"master_weights": "split"}),
    'bfloat16, `master_weights="float32"`': (torch.bfloat16, {"master_weights": "float32"}),
    "bfloat16, `state_dtype=torch.bfloat16`": (torch.bfloat16, {"state_dtype": torch.bfloat16}),
}
"""Parameters' dtypes with options, of which the pages say how much state they take."""
OF_TWO_RULES = (optim.MuonAdamW, optim.MuonWithAuxAdamW)
OF_TWO_POINTS = (optim.NIGT, optim.STORM)
BESIDE_PACKAGES = {
    "ferrostep.optim": ["ferrostep.optim.options.Options"],
    "ferrostep.integrations": [
        "ferrostep.integrations.transformers.TrainerMixin",
        "ferrostep.integrations.timm.register",
    ],
}
"""What is public, but not among the names of its package, which need not have any."""


def optimizers() -> dict[str, type[optim.RuleOptimizer]]:
    """The public optimizers by name."""
    public = {name: getattr(optim, name) for name in optim.__all__}
    return {
        name: each
        for name, each in public.items()
        if inspect.isclass(each) and issubclass(each, optim.RuleOptimizer) and each is not optim.RuleOptimizer
    }


def state_bytes(cls: type[optim.RuleOptimizer], group: dict[str, Any], dtype: torch.dtype, options: Any) -> str:
    """Bytes of state per element after a step, of a matrix large enough that single numbers do not count."""
    p = torch.nn.Parameter(torch.zeros(64, 64, dtype=dtype))
    p.grad = torch.ones_like(p)
    if cls in OF_TWO_POINTS and dtype == torch.bfloat16 and "master_weights" not in options:
        return "refused"
    rate = {"lr": 1e-3} if cls in OF_TWO_POINTS else {}  # it has no default
    optimizer = cls([{"params": [p], **group}], **rate, **options)
    if cls is optim.SophiaG:
        optimizer.update_hessian(bs=1)
    optimizer.step()
    tensors = (each for each in optimizer.state[p].values() if isinstance(each, torch.Tensor))
    return f"{round(sum(each.nbytes for each in tensors) / p.numel(), 1):g}"


def optimizer_page(name: str, cls: type[optim.RuleOptimizer]) -> str:
    """Facts that the class itself knows, then its docstring."""
    papers = dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{5})", cls.__doc__ or ""))
    sources = ", ".join(f"[arXiv {paper}](https://arxiv.org/abs/{paper})" for paper in papers)
    listed = re.search(rf"^\| `optim\.[^|]*\b{name}\b.*$", (ROOT / "README.md").read_text(), re.M)
    peer = listed[0].strip("| ").split(" | ")[-1] if listed else "none"
    groups = {" of Muon": {"use_muon": True}, " of AdamW": {"use_muon": False}} if cls in OF_TWO_RULES else {"": {}}
    head = "".join(f" bytes of state per element{whose} |" for whose in groups)
    rows = [
        f"| {where} |" + "".join(f" {state_bytes(cls, group, *how)} |" for group in groups.values())
        for where, how in STORAGE.items()
    ]
    return "\n".join(
        [
            f"# {name}\n",
            f"**Sources:** {sources}\n\n**Takes the arguments and checkpoints of:** {peer}\n",
            f"| parameter |{head}\n|---|" + "---:|" * len(groups),
            *rows,
            "",
            f"::: ferrostep.optim.{name}",
        ]
    )


def package_page(package: str) -> str:
    """What a package says of itself, and its public names but for those with a page of their own."""
    module = importlib.import_module(package)
    own_pages = optimizers() if module is optim else {}
    public = getattr(module, "__all__", [])
    members = [name for name in public if not inspect.ismodule(getattr(module, name)) and name not in own_pages]
    links = "".join(f"- [{name}](../optimizers/{name}.md)\n" for name in own_pages)
    options = {"members": members, "show_root_heading": False, "show_root_toc_entry": False}
    beside = "".join(f"\n::: {path}\n" for path in BESIDE_PACKAGES.get(package, ()))
    return f"# {package}\n\n{links}\n::: {package}\n    options: {options}\n{beside}"


@cache
def made_pages() -> dict[str, str]:
    """The pages that are made, by their place in the site."""
    packages = sorted(["ferrostep", *(f"ferrostep.{name}" for name in ferrostep.PACKAGES), "ferrostep.integrations"])
    return {
        **{f"optimizers/{name}.md": optimizer_page(name, cls) for name, cls in optimizers().items()},
        **{f"api/{package}.md": package_page(package) for package in packages},
        **{name: file.read_text() for name, file in BESIDE.items()},
    }


def contents(nav: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """The table of contents with folders and "*" spelled out; entries without pages fall away."""
    pages = [file.relative_to(DOCS).as_posix() for file in sorted(DOCS.rglob("*.md"))] + list(made_pages())
    named = {place for entry in nav for place in entry.values()}
    for entry in nav:
        ((title, place),) = entry.items()
        if place == "*":
            found: Any = [page for page in pages if "/" not in page and page not in named]
        elif place.endswith("/"):
            found = [page for page in pages if page.startswith(place)]
        else:
            found = place
        if found:
            yield {title: found}


def rounding_figure() -> str:
    """A bfloat16 weight of 1 on its way to 0.9 in steps of 1e-4, by each way to round it, as SVG."""
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    ways = {"nearest": {}, "stochastic": {"rounding": "stochastic"}, "kahan": {"rounding": "kahan"}}
    ways["split master weights"] = {"master_weights": "split"}
    for label, options in ways.items():
        p = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        optimizer = optim.AdamW([p], lr=1e-4, weight_decay=0.0, **options)
        p.grad = torch.ones_like(p)
        path = []
        for _ in range(1000):
            optimizer.step()
            path.append(p.item())
        axes.plot(path, "--" if options.get("master_weights") else "-", label=label, linewidth=1.2)
    axes.set(xlabel="step", ylabel="weight")
    axes.legend(frameon=False)
    with tempfile.TemporaryFile("w+") as file:
        figure.savefig(file, format="svg", bbox_inches="tight")
        file.seek(0)
        return file.read()


def on_config(config: MkDocsConfig) -> None:
    """Spell out the table of contents."""
    config.nav = list(contents(config.nav))


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what is made."""
    for place, content in {**made_pages(), "rounding.svg": rounding_figure()}.items():
        files.append(File.generated(config, place, content=content))


def made_of(file: Path, name: str) -> str | None:
    """The page that is made of a file, of a module of optimizers that of the class of this name."""
    if file.parent == ROOT / "python" / "ferrostep" / "optim":
        place = f"optimizers/{name}.md"
        return place if place in made_pages() else "api/ferrostep.optim.md"
    return next((place for place, each in BESIDE.items() if each == file), None)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Links to files of the repository: to the page that is made of it, or to the repository."""
    source = BESIDE.get(page.file.src_uri, DOCS / page.file.src_uri)

    def target(match: re.Match[str]) -> str:
        text, path, anchor = match[1] or "", match[2], match[3] or ""
        file = Path(os.path.normpath(source.parent / path))
        made = made_of(file, text)
        if made is None and file.is_relative_to(DOCS) and source.is_relative_to(DOCS):
            return match[0]
        if made is None and not file.exists():
            return match[0]  # mkdocs will complain
        if made is None and not file.is_relative_to(DOCS):
            return f"{text}]({config.repo_url}/blob/main/{file.relative_to(ROOT).as_posix()}{anchor})"
        to = made or file.relative_to(DOCS).as_posix()
        return f"{text}]({os.path.relpath(to, Path(page.file.src_uri).parent)}{anchor})"

    return re.sub(r"((?<=\[)\w+)?\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)", target, markdown)

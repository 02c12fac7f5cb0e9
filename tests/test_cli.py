"""`python -m ferrostep` as a user runs it: in a process of its own."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ferrostep.__main__ import main, terminated_as_interrupted
from ferrostep.demo.optimizers import OPTIMIZERS
from ferrostep.plans import DEFAULT, MODELS, model_of, of_config, of_transformers
from ferrostep.schedules import RefinedSchedule

SAMPLE = b"def f(x):\n    return [i * i for i in range(x)]\n" * 60


def ferrostep(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ferrostep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment(), timeout=120)


def environment() -> dict[str, str]:
    """A pipe's width and encoding, whatever the tests run in."""
    dropped = ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    return {k: v for k, v in os.environ.items() if k not in dropped} | {"PYTHONUTF8": "1"}


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.py"
    path.write_bytes(SAMPLE)
    return path


def test_compare_prints_a_table_and_writes_both_files(sample: Path, tmp_path: Path) -> None:
    names = ["adamw", "lion", "torch.adamw"]  # the default
    done = ferrostep("compare", "--steps", 3, "--text", sample, "--out", tmp_path / "new" / "out", "--seed", 5)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("Wrote"))
    rows = {
        line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith(" ") and line.strip()
    }
    assert (tmp_path / "new/out/compare.png").read_bytes().startswith(b"\x89PNG")

    content = json.loads((tmp_path / "new/out/compare.json").read_text())
    assert content["seed"] == 5 and content["text"] == "sample.py"
    assert content["train_bytes"] + content["held_out_bytes"] == len(SAMPLE)
    assert [run["optimizer"] for run in content["runs"]] == names
    for run in content["runs"]:
        assert run["complete"] and len(run["losses"]) == 3
        assert run["train_loss"] == run["losses"][-1]  # a twentieth of three steps is the last
        assert 0 < run["optimizer_share"] < 1 and 0 < run["optimizer_ms"] < run["step_ms"]
        assert run["losses"][0] == pytest.approx(content["runs"][0]["losses"][0], rel=1e-6)
        assert rows[run["optimizer"]][:3] == ["3", f"{run['train_loss']:.3f}", f"{run['held_out_loss']:.3f}"]
    adamw, lion, torch_adamw = content["runs"]
    assert adamw["losses"] == pytest.approx(torch_adamw["losses"], rel=1e-4)
    assert lion["state_bytes"] == 4 * content["parameters"]
    assert adamw["state_bytes"] == pytest.approx(8 * content["parameters"], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizers", "adamw,lyon"], "unknown optimizer 'lyon' (did you mean 'lion'?)"),
        (["--optimizers", ","], "no optimizer named"),
        (["--text", "nowhere.txt"], "cannot read the text 'nowhere.txt'"),
        (["--text", "."], "cannot read the text '.'"),
        (["--text", "short.txt"], "the text is too short: short.txt has 9 bytes, at least 1,290 are needed"),
        (
            ["--optimizers", "torch.sgd", "--text", "long.txt", "--out", "short.txt"],
            "cannot make the folder 'short.txt'",
        ),
        (["--steps", "0"], "argument --steps: expected a whole number of at least 1, got '0'"),
        (["--steps", "-3"], "argument --steps: expected a whole number of at least 1, got '-3'"),
        (["--steps", "ten"], "argument --steps: expected a whole number of at least 1, got 'ten'"),
        (["--seconds", "nan"], "argument --seconds: expected a number of seconds above 0, got 'nan'"),
        (["--steps", "3", "--seconds", "3"], "not allowed with argument"),
        (["--seed", "9" * 30], "argument --seed: expected a whole number of at least 0"),
        (["--stepz", "3"], "unrecognized arguments: --stepz 3"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "short.txt").write_bytes(b"too short")
    (tmp_path / "long.txt").write_bytes(SAMPLE)
    monkeypatch.chdir(tmp_path)
    try:
        code: object = main(["compare", *arguments])
    except SystemExit as stop:  # argparse's way
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.err.startswith("python -m ferrostep compare: error: ") or "unrecognized" in message
    assert message in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.txt", "short.txt"]


def test_a_mistake_ends_the_process_with_code_2() -> None:
    done = ferrostep("compare", "--optimizers", "nothing")
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith(
        "python -m ferrostep compare: error: unknown optimizer 'nothing'"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["torch", "rich", "matplotlib"])
def test_a_missing_package_names_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["compare"]) == 2
    expected = f'python -m ferrostep compare: error: {package} not installed: pip install "ferrostep[demo]"\n'
    assert capsys.readouterr().err == expected


def test_sigterm_that_is_sent_again_does_not_end_the_report() -> None:
    """As by a batch system that signals the job and each of its processes."""
    before = signal.getsignal(signal.SIGTERM)
    with terminated_as_interrupted():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_end_from_outside_prints_what_there_is(sent: signal.Signals, sample: Path, tmp_path: Path) -> None:
    # A process started in the background may have SIGINT ignored: put Python's handler back.
    script = "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
    script += "runpy.run_module('ferrostep', run_name='__main__', alter_sys=True)"
    arguments = ["compare", "--optimizers", "torch.adamw,torch.sgd,lion", "--text", str(sample)]
    arguments += ["--seconds", "3", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment(),
    )
    assert process.stdout is not None
    before = ""
    while "torch.sgd: step 1 " not in before:
        line = process.stdout.readline()
        assert line, process.communicate()
        before += line
    process.send_signal(sent)
    after, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == ""
    assert "Stopped. So far:" in after
    complete, stopped = (
        next(line for line in after.splitlines() if f" {name} " in line) for name in arguments[2].split(",")[:2]
    )
    assert "stopped" not in complete and "stopped" in stopped
    assert " lion " not in after
    runs = json.loads((tmp_path / "compare.json").read_text())["runs"]
    assert [(run["optimizer"], run["complete"]) for run in runs] == [("torch.adamw", True), ("torch.sgd", False)]
    assert (tmp_path / "compare.png").exists()
    assert re.search(r"^torch\.sgd: step 1 .* \d\d:\d\d left$", before, re.M)


RUN = {"norm": "l1", "every": 1, "steps": 5, "norms": [4, 2, 1, 1, 0.5]}


def test_refine_writes_the_schedule_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    done = ferrostep("refine", tmp_path / "run.json", "--steps", 9, "--smoothing", 0, "--out", tmp_path / "out")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith("9 steps, highest at step 4; 0 norms were not finite\nWrote ")
    schedule = RefinedSchedule(**json.loads((tmp_path / "out/schedule.json").read_text()))
    assert [schedule(step) for step in (0, 4, 8)] == [0.375, 1.0, 0.0]
    assert (tmp_path / "out/schedule.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the run 'run.json'"),
        ("{", "cannot read the run 'run.json': it is no JSON"),
        ("[]", "it holds a list"),
        (json.dumps({"norms": [1, 2]}), "is no run that GradNormRecorder.save wrote"),
        (json.dumps({**RUN, "norms": [1, None]}), "norms has 1 finite numbers"),
        (json.dumps({**RUN, "norm": "l3"}), "'l3'"),
        (json.dumps({**RUN, "every": 0}), "range() arg 3 must not be zero"),
        (json.dumps({"norm": "l1", "steps": 3, "norms": [1, 2, 3]}), "'every'"),
        (json.dumps({**RUN, "norms": [10**400, 1, 2]}), "norms is a list, expected a sequence of numbers"),
    ],
)
def test_refine_refuses_what_is_no_run(
    content: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert main(["refine", "run.json"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("python -m ferrostep refine: error: ") and message in printed
    assert not (tmp_path / "ferrostep-refine").exists()


def test_the_version_is_the_packages() -> None:
    import ferrostep as package

    done = ferrostep("--version")
    assert (done.returncode, done.stdout) == (0, f"ferrostep {package.__version__}\n")


def test_help_names_every_optimizer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    printed = re.sub(r"-\n +", "-", capsys.readouterr().out)  # argparse breaks lines at hyphens
    assert all(name in printed for name in OPTIMIZERS)


@pytest.mark.parametrize(
    ("model", "elements"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("llama-1b", 1_235_814_400),
        ("llama-3b", 3_212_749_824),
        ("llama-8b", 8_030_261_248),
    ],
)
def test_models_have_their_numbers_of_parameters(model: str, elements: int) -> None:
    assert set(MODELS) == {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "llama-1b", "llama-3b", "llama-8b"}
    _, shapes = model_of(model, None)
    assert sum(math.prod(shape) for shape in shapes.values()) == elements


def test_plan_prints_a_table() -> None:
    arguments = ["--model", "gpt2", "--dtype", "bfloat16", "--optimizer", "adamw", "--optimizer", "torch.AdamW"]
    done = ferrostep("plan", *arguments, "--optimizer", "lion:state_dtype=int8,rounding=kahan,lr=1e-4")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    title, _, head, *rows = done.stdout.splitlines()
    assert title == "gpt2: 124,439,808 parameters of bfloat16; GiB without activations"
    assert head.split() == ["optimizer", "weights", "gradients", "state", "scratch", "total", "attached"]
    assert [row.split() for row in rows] == [
        ["adamw", "0.23", "0.23", "0.93", "0.00", "1.39", "1.24"],
        ["torch.AdamW", "0.23", "0.23", "0.46", "0.00", "0.93", "-"],
        ["lion:state_dtype=int8,rounding=kahan,lr=1e-4", "0.23", "0.23", "0.46", "0.00", "0.92", "0.77"],
    ]


def test_plan_takes_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {**MODELS["llama-1b"], "num_hidden_layers": 2, "attention_bias": True, "tie_word_embeddings": False}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert main(["plan", "--config", str(path)]) == 0
    title, _, _, *rows = capsys.readouterr().out.splitlines()
    elements = sum(math.prod(shape) for shape in of_config(config).values())
    assert title == f"llama: {elements:,} parameters of float32; GiB without activations"
    assert [row.split()[0] for row in rows] == list(DEFAULT)


def test_plan_takes_tuples_and_mappings_and_small_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**MODELS["gpt2"], "n_embd": 64, "n_layer": 1, "n_positions": 64, "vocab_size": 4096}))
    half = "adamw:betas=(0.9,0.95),state_dtype={'exp_avg':'bfloat16'},weight_decay=0.1"
    assert main(["plan", "--config", str(path), "--optimizer", half, "--optimizer", "adamw"]) == 0
    title, _, _, *rows = capsys.readouterr().out.splitlines()
    assert title.endswith("; MiB without activations")
    (weights, state), whole = [row.split()[1:4:2] for row in rows]
    assert whole == ["1.21", "2.41"] and (weights, state) == ("1.21", "1.81")


@pytest.mark.frameworks
@pytest.mark.parametrize(
    "config",
    [
        MODELS["gpt2"],
        {**MODELS["llama-1b"], "num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True},
        {**MODELS["llama-8b"], "num_hidden_layers": 2},
    ],
    ids=["gpt2", "llama with biases", "llama with a head"],
)
def test_models_are_those_of_transformers(config: dict[str, object]) -> None:
    pytest.importorskip("transformers")
    architecture = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[str(config["model_type"])]
    theirs = of_transformers({**config, "architectures": [architecture]})
    expected = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    assert of_config(dict(config)) == expected


MISTAKES_OF_PLAN = [
    (["--model", "gtp2"], "unknown model 'gtp2' (did you mean 'gpt2'?); known: gpt2, "),
    (["--model", "gpt2", "--optimizer", "lyon"], "unknown optimizer 'lyon' (did you mean 'lion'?)"),
    (["--model", "gpt2", "--optimizer", "adamw:lr"], "adamw:lr: expected option=value, got 'lr'"),
    (["--model", "gpt2", "--optimizer", "adamw:lr=-1"], "adamw:lr=-1: Invalid learning rate: -1"),
    (["--model", "gpt2", "--optimizer", "adamw:betaz=1"], "adamw:betaz=1: AdamW() got an unexpected"),
    (["--model", "gpt2", "--optimizer", "muon"], "muon: "),
    (["--model", "gpt2", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    (["--config", "nowhere.json"], "cannot read the config 'nowhere.json'"),
    (["--config", "list.json"], "'list.json' is no config.json of transformers: it has no model_type"),
    (["--config", "short.json"], "the config of a 'gpt2' model cannot be used: KeyError: 'n_embd'"),
    (["--model", "gpt2", "--config", "short.json"], "not allowed with argument"),
    ([], "one of the arguments --model --config is required"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES_OF_PLAN)
def test_a_mistake_in_a_plan_is_one_line_and_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "short.json").write_text('{"model_type": "gpt2"}')
    monkeypatch.chdir(tmp_path)
    try:
        code: object = main(["plan", *arguments])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2
    assert message in printed.err and printed.err.startswith("python -m ferrostep plan: error: ")
    assert printed.err.count("\n") == 1 and printed.out == ""


def test_a_kind_of_model_that_needs_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert main(["plan", "--config", str(tmp_path / "config.json")]) == 2
    assert "'bert' models need transformers; without it: gpt2, llama" in capsys.readouterr().err


@pytest.mark.smoke
def test_info_prints_aligned_facts() -> None:
    import ferrostep as package

    done = ferrostep("info")
    assert done.returncode == 0, done.stderr
    facts = package.info()
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(facts)
    column = max(map(len, facts)) + 2
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    assert package.__version__ in done.stdout

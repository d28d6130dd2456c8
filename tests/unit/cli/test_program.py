"""The program as a whole: options before the command, exit codes, JSON everywhere, and no traceback."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import fec_fast
from fec_fast.cli import app as cli
from fec_fast.cli import choosing, deploying
from fec_fast.vision import zoo
from helpers.optional import skip_without
from helpers.processes import run_python

DIGITS = "zoo:vgg-digits"


def run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], env=environment)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(zoo.build(DIGITS).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def pruned(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "checkpoint"
    assert run("prune", DIGITS, "--weights", weights, "--out", folder, "--calibrate", "none").exit_code == 0
    return folder


def test_the_options_before_the_command() -> None:
    version = run("--version")
    assert version.exit_code == 0 and version.stdout.startswith("fec-fast ")
    for option in ("-h", "--help"):
        shown = run(option)
        assert shown.exit_code == 0 and "130 interrupted by Ctrl-C" in " ".join(shown.stdout.split())
        assert run("prune", option).exit_code == 0
    quiet = run("--quiet", "score", DIGITS)
    assert quiet.exit_code == 0 and quiet.stdout == ""


def test_a_quiet_program_shows_no_bars(weights: Path, tmp_path: Path) -> None:
    command = ["prune", DIGITS, "--weights", weights, "--calibrate", "data-free", "--out"]
    shown, quiet = run(*command, tmp_path / "a"), run("--quiet", *command, tmp_path / "b")
    assert shown.exit_code == quiet.exit_code == 0 and quiet.stdout == ""
    assert "recovery: layers" in shown.stderr and "recovery" not in quiet.stderr


@pytest.mark.parametrize("columns", [60, 120])
def test_help_fits_the_terminal(columns: int) -> None:
    for command in ([], ["prune"], ["sweep"], ["export"], ["export", "onnx"]):
        # A process of its own: click's runner for tests has 80 columns.
        shown = run_python("-m", "fec_fast", *command, "--help", COLUMNS=str(columns), NO_COLOR="1")
        assert shown.returncode == 0 and max(map(len, shown.stdout.splitlines())) <= columns
        assert "\x1b" not in shown.stdout
        assert "…" not in shown.stdout  # no word is cut off
        if command in ([], ["export"]):
            text = " ".join(shown.stdout.split())
            assert ("and how to load it. doctor" if not command else "what torch does. int8") in text


def test_completion_is_offered() -> None:
    # Typer asks which shell is running, where it can find out: here none may be.
    environment = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = run_python("-m", "fec_fast", "--show-completion", "bash", **environment)
    assert done.returncode == 0 and "_COMPLETE" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (fec_fast.InputError("no such\nthing"), 2, "error: no such thing\n"),
        (FileNotFoundError(2, "No such file", "x"), 2, "error: [Errno 2] No such file: 'x'\n"),
        (
            ZeroDivisionError("by zero"),
            1,
            "error: ZeroDivisionError: by zero (a fault of the program: fec-fast --debug",
        ),
        (KeyboardInterrupt(), 130, "interrupted; files are written whole or not at all: run the command again\n"),
        (fec_fast.TrainingInterrupted("resume so"), 130, "resume so\n"),
    ],
)
def test_errors_are_one_line_and_have_their_exit_code(
    error: BaseException, code: int, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "score_model", fail)
    result = run("score", DIGITS)
    assert result.exit_code == code
    lines = [line for line in result.stderr.splitlines(keepends=True) if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith(shown)
    debugged = run("--debug", "score", DIGITS)
    assert debugged.exception is error or isinstance(error, KeyboardInterrupt)


@pytest.mark.parametrize(
    ("function", "call", "error", "shown"),
    [
        ("run_demo", ["demo"], KeyboardInterrupt(), "interrupted; the demo keeps nothing of an unfinished run: start "),
        ("run_demo", ["demo"], fec_fast.TrainingInterrupted("of the inside"), "interrupted; the demo keeps nothing"),
        ("run_recipe", ["run", "r.yaml", "--out", "o"], KeyboardInterrupt(), "interrupted; finished .* kept in o: "),
        ("run_recipe", ["run", "r.yaml", "--out", "o"], fec_fast.TrainingInterrupted("resume so"), "resume so\n"),
        ("sweep", ["sweep", DIGITS, "--results", "a"], KeyboardInterrupt(), "interrupted; what was measured is in a: "),
        ("sweep", ["sweep", DIGITS], KeyboardInterrupt(), "interrupted; nothing .* kept: --results FOLDER"),
        ("measure_sensitivity", ["sensitivity", DIGITS], KeyboardInterrupt(), "interrupted; nothing .* kept: --cache"),
    ],
)
def test_ctrl_c_says_what_is_kept_and_how_to_go_on(
    function: str, call: list[str], error: BaseException, shown: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    skip_without("sklearn", "yaml", "jsonschema")

    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(f"model: {DIGITS}\ndata: {{name: 'sklearn:digits'}}\nfinetune: {{epochs: 1}}\n")
    monkeypatch.setattr(choosing if call[0] in ("sweep", "sensitivity") else cli, function, fail)
    data = ["--data", "sklearn:digits"] if call[0] in ("sweep", "sensitivity") else []
    result = run(*call, *data)
    lines = [line for line in result.stderr.splitlines(keepends=True) if not line.startswith("warning: ")]
    assert result.exit_code == 130 and len(lines) == 1 and re.match(shown, lines[0]), result.stderr


@pytest.mark.parametrize("command", ["finetune", "explain", "report", "compare", "export onnx"])
def test_a_plan_of_another_model_is_named_with_the_model(command: str, pruned: Path, tmp_path: Path) -> None:
    other = "zoo:resnet-digits"
    calls: dict[str, list[Any]] = {
        "finetune": [other, "--checkpoint", pruned, "--data", "sklearn:digits", "--set", "finetune.epochs=1"],
        "explain": [pruned, "features.0", "--model", other],
        "report": [pruned, "--model", other],
        "compare": [other, pruned],
        "export onnx": [other, pruned],
    }
    skip_without(*{"finetune": ("sklearn", "yaml", "jsonschema"), "report": ("matplotlib",)}.get(command, ()))
    skip_without(*(("onnx", "onnxscript", "onnxruntime") if command == "export onnx" else ()))
    out = [] if command in ("explain", "compare") else ["--out", tmp_path / "out"]
    result = run(*command.split(), *calls[command], *out)
    assert result.exit_code == 2
    assert f"error: model {other}, plan of {pruned}: the plan is for another model: " in result.stderr


def test_warnings_are_one_line_and_random_weights_are_loud(weights: Path) -> None:
    done = run_python("-m", "fec_fast", "score", DIGITS)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "RANDOM" in line] == [done.stderr.splitlines()[0]]
    assert done.stderr.startswith(f"warning: RANDOM WEIGHTS: {DIGITS} was never trained.")
    assert "RANDOM" not in run("score", DIGITS, "--weights", weights).stderr


def test_an_existing_out_is_kept_without_force(weights: Path, pruned: Path, tmp_path: Path) -> None:
    before = (pruned / "checkpoint.json").read_bytes()
    again = ["prune", DIGITS, "--weights", weights, "--ratio", "0.2", "--calibrate", "none", "--out", pruned]
    refused = run(*again)
    assert refused.exit_code == 2 and "add --force to replace it" in refused.stderr
    assert (pruned / "checkpoint.json").read_bytes() == before
    folder = tmp_path / "other"
    assert run(*again[:-1], folder).exit_code == 0
    plan = (folder / "plan.json").read_bytes()
    again[again.index("0.2")] = "0.4"
    assert run(*again[:-1], folder, "--force").exit_code == 0
    assert (folder / "plan.json").read_bytes() != plan


def test_prune_prints_totals_first_and_layers_on_request(weights: Path, tmp_path: Path) -> None:
    arguments = ["prune", DIGITS, "--weights", weights, "--ratio", "0.3", "--calibrate", "none", "--out"]
    short = run(*arguments, tmp_path / "short").stdout.splitlines()
    assert short[0].startswith("parameters: 305,130 -> ") and short[1].startswith("MACs: ") and len(short) < 12
    long = run(*arguments, tmp_path / "long", "--layers").stdout.splitlines()
    assert long[:2] == short[:2] and any(line.startswith("total") for line in long)


@pytest.mark.parametrize("command", ["score", "prune", "explain", "info", "doctor", "compare"])
def test_json_goes_to_a_file_or_alone_to_the_standard_output(
    command: str, weights: Path, pruned: Path, tmp_path: Path
) -> None:
    arguments: dict[str, list[str | Path]] = {
        "score": ["score", DIGITS, "--weights", weights],
        "prune": ["prune", DIGITS, "--weights", weights, "--force", "--calibrate", "none", "--out", tmp_path / "out"],
        "explain": ["explain", pruned, "features.0"],
        "info": ["info"],
        "doctor": ["doctor"],
        "compare": ["compare", DIGITS, pruned, "--weights", weights],
    }
    if command == "explain":
        layer = fec_fast.Plan.from_json((pruned / "plan.json").read_text()).sets[0]["layers"][0]
        arguments["explain"][-1] = layer
    printed = run(*arguments[command], "--json", "-")
    assert printed.exit_code == 0, printed.output
    document = json.loads(printed.stdout)
    written = run(*arguments[command], "--json", tmp_path / "result.json")
    assert written.exit_code == 0 and written.stdout.strip()
    assert json.loads((tmp_path / "result.json").read_text()).keys() == document.keys()


def test_equal_warnings_are_printed_once(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "few.py").write_text("import torch\ndef loaders():\n    return [torch.randn(20, 1, 8, 8)], []\n")
    few = ["--calibrate", f"{tmp_path / 'few.py'}:loaders"]  # channels are chosen by them, and recovered on them
    done = run_python("-m", "fec_fast", "prune", DIGITS, "--weights", weights, *few, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: 20 calibration images are few") == 1


def test_compare(weights: Path, pruned: Path) -> None:
    pytest.importorskip("sklearn")
    with pytest.warns(fec_fast.FecWarning, match="^dense: the accuracy .* guessing among 10 classes"):  # random weights
        done = run("compare", DIGITS, pruned, "--weights", weights, "--data", "sklearn:digits", "--json", "-")
    dense, small = json.loads(done.stdout)["networks"]
    assert dense["name"] == "dense" and small["name"] == str(pruned)
    assert small["parameters"] < dense["parameters"] and small["macs"] < dense["macs"]
    assert 0 <= small["accuracy"] <= 1 and small["latency_ms"] is None
    assert run("compare", DIGITS, pruned, "--weights", weights).stdout.splitlines()[2].split()[:2] == [
        "dense",
        "305,130",
    ]


def test_compare_doubts_times_that_disagree(weights: Path, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, doubted in (([1e-3, 2e-3, 1.1e-3, 2e-3], False), ([0.4e-3, 92e-3, 0.4e-3, 0.3e-3], True)):
        times = iter(seconds)
        monkeypatch.setattr(deploying, "measure_latency", lambda *_, times=times: next(times))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            done = run("compare", DIGITS, pruned, "--weights", weights, "--latency")
        assert done.exit_code == 0, done.output
        said = [str(warning.message) for warning in caught if "the machine was busy" in str(warning.message)]
        assert len(said) == doubted and all("are 92 ms and 0.3 ms" in text for text in said)
        assert done.stdout.splitlines()[2].split()[-1] == ("0.4" if doubted else "1")


@pytest.mark.slow
def test_compare_in_a_runtime(weights: Path, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("onnx", "onnxscript", "onnxruntime")
    measure = deploying.measure_latency
    monkeypatch.setattr(deploying, "measure_latency", lambda network, example: measure(network, example, 0.01))
    done = run("compare", DIGITS, pruned, "--weights", weights, "--runtime", "onnxruntime", "--json", "-")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["runtime"] == "onnxruntime" and document["threads"] == torch.get_num_threads()
    assert all(entry["latency_ms"] > 0 for entry in document["networks"])
    monkeypatch.setitem(sys.modules, "openvino", None)
    absent = run("compare", DIGITS, pruned, "--weights", weights, "--runtime", "openvino")
    assert absent.exit_code == 2 and "pip install 'fec_fast[openvino]'" in absent.stderr
    unknown = run("compare", DIGITS, pruned, "--weights", weights, "--runtime", "tensorrt")
    assert unknown.exit_code == 2 and "runtime='tensorrt': give one of torch, torch.compile" in unknown.stderr

"""The command line end to end, on a tiny model."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from layerwright import cli, verbs
from layerwright.cli.arguments import say
from layerwright.core.errors import UserError


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lw", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    out, err = capsys.readouterr()
    return stop.value.code or 0, out, err


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of error of a command that must fail with 2."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


def test_predict_prints_what_a_theory_says_and_writes_it(tmp_path, capsys) -> None:
    given = ("deep_linear", "--set", "modes=[2, 1]", "depth=2", "--out", tmp_path / "a.svg")
    code, out, err = run(capsys, "predict", *given)
    assert code == 0
    assert "half_time (τ)" in out
    assert "assumes: gradient flow" in out
    assert "https://arxiv.org/abs/1312.6120" in out
    assert err == f"wrote {tmp_path / 'a.svg'}\n"
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    _, out, _ = run(capsys, "predict", "deep_linear", "--json", "--set", "modes=2")
    assert json.loads(out)["theory"]["options"]["modes"] == [2]
    _, out, _ = run(capsys, "predict", "deep_linear", "--json", "--set", "start=1e-3", "modes=[1e-1, 2E0]")
    assert json.loads(out)["theory"]["options"] == {"depth": 3, "modes": [0.1, 2.0], "start": 0.001}
    assert "deep_linear_collapse" in run(capsys, "predict")[1]
    assert "Assumes:" in run(capsys, "explain", "random_features")[1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("deep_liner",), "did you mean 'deep_linear'"),
        (("deep_linear", "--set", "start=0"), "got start=0"),
        (("deep_linear", "--set", "start=x"), "expected a number"),
        (("deep_linear", "--set", "random_features.noise=1"), "got an option of random_features"),
        (("random_features", "--arrays", "nowhere.npz"), "cannot be read"),
        (("deep_linear", "--out", "a.pdf"), "expected a name that ends with"),
        (("newton_iterates", "--set", "seed=0.5"), "expected a whole number from 0 on"),
        (("deep_kernel_machine", "--set", "kernel=[1]"), "expected a name"),
        (("max_margin_attention", "--set", "length=1000000000000"), "more memory than there is"),
    ],
)
def test_predictions_that_cannot_be_made_are_one_line(arguments, words, capsys) -> None:
    assert words in fails(capsys, "predict", *arguments)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"xs": np.full((3, 2), np.nan), "ys": np.ones(3)}, "NaN or infinite"),
        ({"xs": np.ones((3, 2)) * 1j, "ys": np.ones(3)}, "got xs of type complex128"),
        ({"xs": np.ones((3, 2)), "ys": np.array(["a", "b", "c"])}, "got ys of type <U1"),
        ({"xs": np.array([None]), "ys": np.ones(3)}, "Python objects"), ({"xs": np.ones((3, 2))}, "one of the arrays"),
        ({"points": np.ones(3)}, "expected xs, ys"), (np.ones(3), "one array without a name"),
    ],
)  # fmt: skip
def test_arrays_that_a_theory_cannot_read_are_one_line(arrays, words, tmp_path, capsys) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.savez(file, **arrays) if isinstance(arrays, dict) else np.save(file, arrays)
    for name in ("newton_iterates", "gradient_step_attention"):
        assert words in fails(capsys, "predict", name, "--arrays", tmp_path / "a.npz")


def test_survey_prints_a_row_a_block_and_writes_files(tiny_folder, text_file, tmp_path, capsys) -> None:
    code, out, _ = run(capsys, "survey", tiny_folder, "--text", text_file, "--tier", "quick", "--out", tmp_path / "out")
    assert code == 0
    assert "3 blocks at model.layers" in out
    assert [line.split()[0] for line in out.splitlines() if line[:5].strip().isdigit()] == ["0", "1", "2"]
    assert max(map(len, out.splitlines()[:10])) <= 80
    assert json.loads((tmp_path / "out" / "survey.json").read_text())["model"]["depth"] == 3
    assert (tmp_path / "out" / "tables" / "block_influence.csv").exists()
    assert (tmp_path / "out" / "report.html").exists()


def test_json_is_all_there_is_on_standard_output(tiny_folder, text_file, capsys) -> None:
    names = ("block_influence", "residual_cosine")
    code, out, _ = run(capsys, "survey", tiny_folder, "--text", text_file, "--json", "--only", *names, "--seed", "3")
    document = json.loads(out)
    assert code == 0
    assert sorted(document["tables"]) == sorted(names)
    assert document["settings"]["seed"] == 3


def test_options_reach_the_library(tiny_folder, text_file, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def survey(model: str, data: Path, **settings: object) -> SimpleNamespace:
        seen.update(settings, model=model, data=data)
        return SimpleNamespace(to_dict=dict)

    monkeypatch.setattr(verbs, "survey", survey)
    run(
        capsys, "survey", "demo", "--text", text_file, "--skip", "a", "b", "--set", "logit_lens.tokens=64",
        "x.y=[1, 2]", "--set", "x.z=no", "--blocks", "model.layers", "--device", "cuda", "--dtype", "float16",
        "--max-tokens", "99", "--length", "33", "--tier", "deep", "--trust-remote-code", "--json",
        "--stream", "always", "--jobs", "2", "--against", "b", "--theory",
    )  # fmt: skip
    assert seen == {
        "model": "demo", "data": str(text_file), "tier": "deep", "only": [], "skip": ["a", "b"],
        "blocks": "model.layers", "options": {"logit_lens": {"tokens": 64}, "x": {"y": [1, 2], "z": False}},
        "device": "cuda", "dtype": "float16", "max_tokens": 99, "length": 33, "seed": 0,
        "trust_remote_code": True, "progress": False, "stream": "always", "jobs": "2", "against": "b",
        "against_data": None, "theory": True, "out": None, "say": say,
    }  # fmt: skip


def test_lists_and_explanations(tiny_folder, text_file, capsys) -> None:
    code, out, _ = run(capsys, "list", "measures")
    assert code == 0
    assert {"angular_distance", "weight_spectrum"} <= {line.split()[0] for line in out.splitlines()}
    code, out, _ = run(capsys, "explain", "block_influence")
    assert code == 0
    assert "at least 0, at most 2" in out
    assert "1 − cos(h_l, h_{l+1})" in out
    for name in ("signal_propagation", "tangent_kernel", "tower", "Conv"):
        code, out, _ = run(capsys, "explain", name)
        assert (code, out.splitlines()[0]) == (0, name)
        assert "Raises:" in out or name == "Conv"
    code, out, _ = run(capsys, "list", "towers", tiny_folder, "--text", text_file)
    assert code == 0
    assert out.splitlines()[1].split() == ["model.layers", "3", "LlamaDecoderLayer"]


def test_claims_are_listed_and_explained(capsys) -> None:
    for arguments in (("claims",), ("list", "claims")):
        code, out, _ = run(capsys, *arguments)
        assert code == 0
        assert "residual_depth" in out
    code, out, _ = run(capsys, "explain", "residual_depth")
    assert code == 0
    assert "Control" in out


@pytest.mark.parametrize("verdict, expected", [("holds", 0), ("inconclusive", 0), ("fails", 1)])
def test_a_claim_that_fails_is_exit_code_1(verdict: str, expected: int, tmp_path, capsys, monkeypatch) -> None:
    columns = ("claim", "verdict", "paper", "budget", "seeds", "date")
    table = pd.DataFrame(
        [("a", "holds", "1", "small", 5, "today"), ("b", verdict, "2", "small", 5, "today")], columns=columns
    )
    seen = {}
    monkeypatch.setattr(verbs, "claims", lambda names, **settings: seen.update(settings, names=names) or table)
    code, out, _ = run(capsys, "claims", "run", "a", "b", "--budget", "full", "--seeds", "4", "--out", tmp_path / "out")
    assert code == expected
    assert "claims.html" in out
    assert seen == {
        "names": ["a", "b"], "all": False, "budget": "full", "seeds": 4, "out": tmp_path / "out", "progress": False,
    }  # fmt: skip


def test_version_and_help(capsys) -> None:
    assert run(capsys, "--version")[1] == "layerwright 0.1.0\n"
    for arguments in ((), ("--help",), ("survey", "--help"), ("claims", "run", "--help")):
        code, out, _ = run(capsys, *arguments)
        assert code == 0
        assert "Usage" in out


def test_wrong_usage_is_one_line(tiny_folder, text_file, capsys) -> None:
    assert "--teir" in fails(capsys, "survey", "demo", "--teir", "quick")
    assert "MODEL" in fails(capsys, "survey")
    assert "quick" in fails(capsys, "survey", "demo", "--tier", "quik")
    assert "surve" in fails(capsys, "surve", "demo")
    assert "--seed" in fails(capsys, "survey", "demo", "--seed", "many")
    assert "NAME.OPTION=VALUE" in fails(capsys, "survey", "demo", "--set", "gap=2")
    assert "expected one" in fails(capsys, "survey", "demo", "--text", "a", "--images", "b")
    assert "lw list towers MODEL" in fails(capsys, "list", "towers")
    assert "--all" in fails(capsys, "claims", "run")


def test_wrong_names_are_answered_with_the_nearest(tiny_folder, text_file, capsys) -> None:
    base = ("survey", tiny_folder, "--text", text_file)
    assert "did you mean 'angular_distance'" in fails(capsys, *base, "--only", "angular_distnace")
    assert "no option 'gpa'" in fails(capsys, *base, "--set", "angular_distance.gpa=3")
    assert "did you mean" in fails(capsys, "explain", "block_influense")
    assert "model.layers" in fails(capsys, *base, "--only", "block_influence", "--blocks", "model.layer")


def test_bad_paths(tiny_folder, tmp_path, capsys) -> None:
    assert "no folder" in fails(capsys, "survey", tmp_path / "none")
    assert "no file or folder" in fails(capsys, "survey", tiny_folder, "--text", tmp_path / "none")
    (tmp_path / "file").write_text("x")
    assert "is a file" in fails(capsys, "survey", tiny_folder, "--out", tmp_path / "file" / "out")


def test_an_unwritable_folder_is_found_before_the_work(tiny_folder, tmp_path, capsys, monkeypatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(verbs, "survey", lambda *a, **k: pytest.fail("the survey ran"))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert "Permission denied" in fails(capsys, "survey", tiny_folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def raising(error: BaseException):
    def survey(*_: object, **__: object) -> None:
        raise error

    return survey


def test_errors_in_the_work(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "survey", raising(OSError(errno.ENOSPC, "No space left on device", "out/survey.json")))
    assert fails(capsys, "survey", "demo") == (
        "error: out/survey.json cannot be read or written: No space left on device\n"
    )
    monkeypatch.setattr(verbs, "survey", raising(UserError("first\nsecond")))
    assert fails(capsys, "survey", "demo") == "error: first second\n"
    monkeypatch.setattr(verbs, "survey", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):  # a bug of ours is not dressed up as the user's mistake
        cli._run(["survey", "demo"])


def test_ctrl_c(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "survey", raising(KeyboardInterrupt()))
    code, out, err = run(capsys, "survey", "demo")
    assert (code, out) == (130, "")
    assert err.count("\n") == 1


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "layerwright", "train", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Missing option '--steps'")
    assert "Traceback" not in done.stderr

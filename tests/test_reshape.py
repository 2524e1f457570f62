"""`lw reshape` and `lw verify` end to end on tiny models: what is published, what is refused, what is left behind."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from reshaping import prepared
from test_cli import fails, run

import layerwright as lw
from layerwright.core import climb as climbing
from layerwright.core import edit, tensor_writer
from layerwright.core import reshape as reshaping
from layerwright.core.load import load_model, quietly
from layerwright.core.plan import Plan


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Leave block 1 out."""
    path = tmp_path / "plan.yaml"
    path.write_text("reshape: 1\nsteps:\n- drop: [1]\n")
    return path


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "other.yaml"
    path.write_text(text)
    return path


def test_a_plan_is_applied_checked_and_published(tiny_folder: Path, plan: Path, tmp_path: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, "reshape", tiny_folder, plan, "--out", tmp_path / "new")
    assert code == 0
    assert out.startswith("2 blocks: 0 2\n")
    assert "4 rungs passed" in out
    assert max(map(len, out.splitlines())) <= 80 + len(str(tmp_path))
    record = json.loads((tmp_path / "new" / "reshape.json").read_text())
    assert record["order"] == [0, 2]
    assert record["plan"]["steps"] == [{"drop": [1]}]
    assert record["ladder"]["ok"]
    name = "model.layers.1.mlp.up_proj.weight"
    assert record["provenance"][name] == ["model.layers.2.mlp.up_proj.weight"]
    assert "## How this model was made" in (tmp_path / "new" / "README.md").read_text()
    assert (tmp_path / "new" / "tokenizer.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "plan.yaml"]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert model.config.num_hidden_layers == 2


def test_what_was_published_can_be_verified_again(tiny_folder: Path, plan: Path, tmp_path: Path, capsys: Any) -> None:
    run(capsys, "reshape", tiny_folder, plan, "--out", tmp_path / "new", "--verify", "none")
    code, out, _ = run(capsys, "verify", tiny_folder, tmp_path / "new", "--verify", "decode", "--json")
    assert code == 0
    assert [rung["verdict"] for rung in json.loads(out)["rungs"]][:3] == ["passed"] * 3
    weights = tmp_path / "new" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 64  # of the last tensor's last number
    weights.write_bytes(content)
    code, out, _ = run(capsys, "verify", tiny_folder, tmp_path / "new", "--verify", "decode")
    assert code == 1
    assert "Failed at rung" in out


def test_a_dry_run_prints_the_plan_of_a_planner(
    tiny_folder: Path, text_file: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = ("reshape", tiny_folder, "--plan-with", "drop_by_loss", "--set", "drop_by_loss.blocks=1", "--text")
    code, out, _ = run(capsys, *arguments, text_file, "--dry-run")
    assert code == 0
    proposed = yaml.safe_load(out)
    assert list(proposed["steps"][0]) == ["drop"]
    assert "nat/token" in proposed["why"]
    assert [p.name for p in tmp_path.iterdir()] == []
    code, _, _ = run(
        capsys, "reshape", tiny_folder, written(tmp_path, out), "--out", tmp_path / "new", "--verify", "none"
    )
    assert code == 0
    assert load_model(tmp_path / "new")[0].config.num_hidden_layers == 2


def test_findings_hand_over_plans_that_run_unchanged(tmp_path: Path, tokenizer: Any, text_file: Path) -> None:
    """A block that adds nothing is found, and the plan of the finding leaves it out without changing an answer."""
    stack, inputs = prepared("llama")
    with torch.no_grad():
        for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            stack.blocks[1].get_parameter(name).zero_()
    survey = lw.survey(stack.model, inputs, tier="quick")
    plans = [f.plan for f in survey.findings if f.plan is not None and f.title.startswith(("Block", "1 block", "Dead"))]
    plans = plans or [f.plan for f in survey.findings if f.plan is not None]
    assert plans
    model, report = lw.reshape(stack.model, Plan.from_yaml(plans[0].to_yaml()), until="exactness")
    assert report.ok
    assert model is not None
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits, stack.model(**inputs).logits, atol=1e-6)


def test_live_models_stay_as_they_are() -> None:
    stack, _ = prepared("gpt2")
    before = {name: value.clone() for name, value in stack.model.state_dict().items()}
    model, report = lw.reshape(stack.model, Plan(({"stack": 2}, {"insert": [0]})), until="decode")
    assert report.ok, report.ladder.lines()
    assert report.folder is None
    assert model.config.n_layer == 7
    assert all(torch.equal(value, before[name]) for name, value in stack.model.state_dict().items())
    assert not any(value.requires_grad is False for value in model.parameters())


def test_models_without_a_configuration_are_reshaped_in_memory(tmp_path: Path) -> None:
    stack, inputs = prepared("nn.Sequential")
    with pytest.raises(lw.UserError, match="takes inputs of its own"):
        lw.reshape(stack.model, Plan(({"drop": [1]},)))
    model, report = lw.reshape(stack.model, Plan(({"drop": [1]},)), inputs, until="exactness")
    assert report.ok
    assert len(list(model.children())) == len(list(stack.model.children())) - 1
    with pytest.raises(lw.UserError, match="has no save_pretrained"):
        lw.reshape(stack.model, Plan(({"drop": [1]},)), inputs, out=tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == []


def test_weights_stored_in_another_form_are_loaded(tmp_path: Path, capsys: Any) -> None:
    stack, _ = prepared("mixtral")
    with quietly():
        stack.model.save_pretrained(tmp_path / "base")
    path = written(tmp_path, "reshape: 1\nsteps: [{insert: [1]}]")
    code, out, err = run(capsys, "reshape", tmp_path / "base", path, "--out", tmp_path / "new", "--verify", "decode")
    assert code == 0, out
    assert "loading it" in err
    assert load_model(tmp_path / "new")[0].config.num_hidden_layers == 4


@pytest.mark.parametrize("name", ["mixtral", "vit", "albert"])
def test_where_weights_come_from_is_known_in_every_form(name: str, tmp_path: Path) -> None:
    stack, _ = prepared(name)
    with quietly():
        stack.model.save_pretrained(tmp_path / "base")
    _, report = lw.reshape(str(tmp_path / "base"), Plan(({"drop": [1]},)), out=tmp_path / "new", until="decode")
    assert report.ok, report.ladder.lines()
    assert report.ladder["exactness"].verdict == "passed"


def test_tied_weights_are_written_out_for_plain_transformers(tiny_folder: Path, tmp_path: Path) -> None:
    model, _, _ = load_model(tiny_folder)
    shared = Plan(({"loop": {"blocks": [1], "times": 3, "share": "weights"}},))
    new, report = lw.reshape(model, shared, out=tmp_path / "new", until="decode")
    assert report.ok, report.ladder.lines()
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, new(ids).logits)


# What fails is not published


@pytest.mark.usefixtures("no_fresh_process")
def test_a_requirement_that_does_not_hold_is_exit_1_and_marked(
    tiny_folder: Path, text_file: Path, tmp_path: Path, capsys: Any
) -> None:
    path = written(tmp_path, "reshape: 1\nsteps: [{drop: [0]}]\nverify: {loss: {max_ratio: 0.01}}")
    code, out, _ = run(capsys, "reshape", tiny_folder, path, "--text", text_file, "--out", tmp_path / "new")
    assert code == 1
    assert "not published" in out
    assert not (tmp_path / "new").exists()
    record = json.loads((tmp_path / "new.failed" / "reshape.json").read_text())
    assert not record["ladder"]["ok"]


def test_a_step_said_to_be_exact_must_be(tiny_folder: Path, tmp_path: Path, capsys: Any) -> None:
    path = written(tmp_path, "reshape: 1\nsteps: [{drop: [1]}]\nverify: {exact: [drop]}")
    code, out, _ = run(capsys, "reshape", tiny_folder, path, "--out", tmp_path / "new", "--json")
    assert code == 1
    failed = [rung for rung in json.loads(out)["ladder"]["rungs"] if rung["verdict"] == "failed"]
    assert [rung["name"] for rung in failed] == ["exactness"]


def test_a_full_disk_publishes_nothing(
    tiny_folder: Path, plan: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_writer, "_put", full)
    err = fails(capsys, "reshape", tiny_folder, plan, "--out", tmp_path / "new")
    assert "No space left on device" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.yaml"]


def test_a_result_that_transformers_cannot_load_says_why(
    tiny_folder: Path, plan: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = edit.write_tensors

    def lossy(folder: Path, items: Any, **options: Any) -> None:
        write(folder, [item for item in items if "up_proj" not in item.name], **options)

    monkeypatch.setattr(edit, "write_tensors", lossy)
    err = fails(capsys, "reshape", tiny_folder, plan, "--out", tmp_path / "new")
    assert "missing" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.yaml"]


# Bad input


@pytest.mark.parametrize(
    "text, words",
    [
        ("reshape: 1\nsteps: [{drop: [9]}]", "got block 9; there are 3, 0 to 2"),
        ("reshape: 1\nsteps: [{drop: '0:3'}]", "leaves no block"),
        ("reshape: 1\nsteps: [{drp: [1]}]", "did you mean 'drop'"),
        ("reshape: 1\nsteps: [{keep: [0]}, {drop: [1]}]", "there are 1, 0 to 0 (step 2 of the plan)"),
        ("reshape: 1\nbase: {model: x, sha256: abc}\nsteps: [{drop: [1]}]", "the plan is for the model x abc"),
        ("reshape: 1\nsteps: [{recurse: {unique: 2}}]", "divisor of the depth 3"),
        ("a: &a [1]\nb: *a", "alias"),
        ("!!python/object/new:os.system [echo]", "not YAML"),
    ],
)
def test_bad_plans_are_one_line(tiny_folder: Path, tmp_path: Path, capsys: Any, text: str, words: str) -> None:
    path = written(tmp_path, text)
    assert words in fails(capsys, "reshape", tiny_folder, path, "--out", tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["other.yaml"]


def test_folders_that_are_in_use_are_left_alone(tiny_folder: Path, plan: Path, tmp_path: Path, capsys: Any) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    before = sorted((p.name, p.stat().st_size) for p in base.iterdir())
    assert "holds the base itself" in fails(capsys, "reshape", base, plan, "--out", base)
    assert "holds the base itself" in fails(capsys, "reshape", base, plan, "--out", tmp_path)
    assert "is not empty" in fails(capsys, "reshape", tiny_folder, plan, "--out", base)
    (tmp_path / "file").write_text("mine")
    assert "is a file" in fails(capsys, "reshape", base, plan, "--out", tmp_path / "file")
    assert sorted((p.name, p.stat().st_size) for p in base.iterdir()) == before


def test_an_empty_folder_is_as_good_as_none(tiny_folder: Path, plan: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "new").mkdir()
    code, _, _ = run(capsys, "reshape", tiny_folder, plan, "--out", tmp_path / "new", "--verify", "none")
    assert code == 0
    assert (tmp_path / "new" / "config.json").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("reshape", "MODEL"), "expected a plan or the name of a planner"),
        (("reshape", "MODEL", "PLAN"), "expected --out"),
        (("reshape", "MODEL", "PLAN", "--plan-with", "drop_by_loss", "--dry-run"), "and not both"),
        (("reshape", "MODEL", "--plan-with", "drop_by_los", "--dry-run"), "did you mean 'drop_by_loss'"),
        (("reshape", "MODEL", "PLAN", "--out", "OUT", "--verify", "reloaded"), "did you mean 'reload'"),
        (("reshape", "MODEL", "none.yaml", "--out", "OUT"), "cannot read the plan none.yaml"),
        (("reshape", "nowhere/at/all", "PLAN", "--out", "OUT"), "no folder"),
        (("verify", "MODEL", "nowhere"), "no folder"),
    ],
)
def test_bad_arguments_are_one_line(
    tiny_folder: Path, plan: Path, tmp_path: Path, capsys: Any, arguments: tuple[str, ...], words: str
) -> None:
    places = {"MODEL": tiny_folder, "PLAN": plan, "OUT": tmp_path / "new"}
    assert words in fails(capsys, *(places.get(word, word) for word in arguments))
    assert [p.name for p in tmp_path.iterdir()] == ["plan.yaml"]


def test_quantized_checkpoints_are_refused(tiny_folder: Path, plan: Path, tmp_path: Path, capsys: Any) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    assert "quantized" in fails(capsys, "reshape", base, plan, "--out", tmp_path / "new")


def test_a_tied_head_stays_tied(tmp_path: Path, plan: Path, capsys: Any) -> None:
    stack, _ = prepared("gpt2")
    assert stack.model.config.tie_word_embeddings
    with quietly():
        stack.model.save_pretrained(tmp_path / "base")
    code, out, _ = run(capsys, "reshape", tmp_path / "base", plan, "--out", tmp_path / "new", "--verify", "exactness")
    assert code == 0, out
    model, _, _ = load_model(tmp_path / "new")
    assert model.lm_head.weight is model.transformer.wte.weight


def test_joined_blocks_are_held_against_blocks_side_by_side() -> None:
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=40,
            intermediate_size=24,
            initializer_range=0.2,
        )
    ).eval()
    new, report = lw.reshape(model, Plan(({"order": [0, 2, 1, 3]}, {"parallel": 2})), until="decode")
    assert report.ok, report.ladder.lines()
    assert "what was expected" in report.ladder["exactness"].finding
    assert new.config.num_hidden_layers == 2


@pytest.mark.slow
def test_fitted_blocks_are_measured_on_what_they_were_not_fitted_on(
    tiny_folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    climb = climbing.verify

    def watched(case: Any, **options: Any) -> Any:
        seen["documents"] = case.documents
        return climb(case, **options)

    fit = reshaping.apply

    def fitted(stack: Any, plan: Any, inputs: Any, batches: Any = (), *more: Any) -> Any:
        seen.setdefault("fit", batches)
        return fit(stack, plan, inputs, batches, *more)

    monkeypatch.setattr(climbing, "verify", watched)
    monkeypatch.setattr(reshaping, "apply", fitted)
    path = written(tmp_path, "reshape: 1\nsteps: [{heal: {blocks: '0:2'}}]\nverify: {loss: {max_ratio: 9}}")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(map(str, range(2000))))
    code, out, err = run(
        capsys, "reshape", tiny_folder, path, "--text", text, "--out", tmp_path / "new", "--length", "32"
    )
    assert code == 0, out
    assert "a fit needs the loaded model: loading it" in err
    used, held = ({tuple(row.tolist()) for b in seen[key] for row in b["input_ids"]} for key in ("fit", "documents"))
    assert used
    assert held
    assert not used & held


def test_a_proposed_plan_knows_its_base(tiny_folder: Path, text_file: Path, tmp_path: Path, capsys: Any) -> None:
    plan = lw.propose(
        str(tiny_folder), "drop_by_influence", str(text_file), options={"drop_by_influence": {"blocks": 1}}
    )
    assert len(plan.sha256) == 64
    model, _, _ = load_model(tiny_folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    with quietly():
        model.save_pretrained(tmp_path / "other")
    plan.save(tmp_path / "plan.yaml")
    assert "the plan is for the model" in fails(
        capsys, "reshape", tmp_path / "other", tmp_path / "plan.yaml", "--out", tmp_path / "new"
    )


def test_a_plan_for_the_files_is_for_the_model_that_they_are_loaded_into(tmp_path: Path) -> None:
    """In memory the numbers are of another dtype than on disk, so that their own hash is another."""
    stack, _ = prepared("llama")
    stack.model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    plan = lw.propose(tmp_path / "model", "stack_grow", torch.ones(2, 8, dtype=torch.long))
    assert plan.sha256
    made, report = lw.reshape(tmp_path / "model", plan, until="structure")
    assert report.ok
    assert report.edit.sha256 == plan.sha256
    assert made.config.num_hidden_layers == 4 * stack.depth
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    model, _, _ = load_model(tmp_path / "other")
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(lw.UserError, match="the plan is for the model"):
        lw.reshape(tmp_path / "other", plan, until="structure")

"""Recipes: what a user may write, and what they are told when they may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftune.config import Recipe
from raftune.errors import UserError
from raftune.recipe import load, parse

GOOD = "model: m\nprompts: p.jsonl\nreward: vader\n"


def recipe(folder: Path, text: str = GOOD, *changes: str) -> Recipe:
    (folder / "r.yaml").write_text(text)
    return load(folder / "r.yaml", changes)


def test_the_shortest_recipe(tmp_path: Path) -> None:
    short = recipe(tmp_path)
    assert short.prompts.path == "p.jsonl"
    assert [r.use for r in short.reward] == ["vader"]
    assert short == recipe(tmp_path, "model: m\nprompts: {path: p.jsonl}\nreward: [{use: vader}]\n")


@pytest.mark.parametrize(
    ("addition", "said"),
    [
        ("rouns: 3", "rouns: no such key; did you mean 'rounds'?"),
        ("sample: {temprature: 1}", "sample.temprature: no such key; did you mean 'temperature'?"),
        ("tune: {lora: {rank: 1}}", "tune.lora.rank: no such key; it has r, alpha"),
        ("zzz: 1", "zzz: no such key; it has modality, model, prompts"),
        ("sample: {k: 0}", "sample.k: should be greater than or equal to 1, got 0"),
        ("sample: {temperature: 0}", "sample.temperature: should be greater than 0, got 0"),
        ("sample: {temperature: -1}", "sample.temperature: should be greater than 0, got -1"),
        ("sample: {k: many}", "sample.k: should be a valid integer"),
        ("rounds: 0", "rounds: should be greater"),
        ("tune: {learning_rate: .inf}", "tune.learning_rate: should be a finite number"),
        ("tune: {schedule: sine}", "tune.schedule: should be 'linear', 'cosine' or 'constant', got 'sine'"),
        ("tune: [", "not YAML"),
        ("sample: {height: 8}", "sample.height: is a key of modality image; set modality: image, or leave it out"),
        ("tune: {max_epochs: 8}", "tune.max_epochs: is a key of modality image"),
        ("modality: image\ntune: {epochs: 8}", "tune.epochs: is a key of modality text"),
        ("modality: image\nsample: {hieght: 8}", "sample.hieght: no such key; did you mean 'height'?"),
        ("modality: audio", "modality: 'audio' is unknown; use text or image"),
        ("modality: [image]", "modality: ['image'] is unknown; use text or image"),
        ("evaluate: {also: {far: {kk: 1}}}", "evaluate.also.far.kk: no such key; "),
        ("select: {buffer: -1}", "select.buffer: should be greater than or equal to 0"),
    ],
)
def test_faults_name_the_key_and_the_mend(addition: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        recipe(tmp_path, GOOD + addition)
    assert said in str(error.value)
    assert "r.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_keys_and_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reward: is missing"):
        recipe(tmp_path, "model: m\nprompts: p\n")
    with pytest.raises(UserError, match=r"a recipe is a mapping"):
        recipe(tmp_path, "- a\n")
    with pytest.raises(UserError, match=r"absent.yaml: no such file"):
        load(tmp_path / "absent.yaml")


def test_set_changes_keys(tmp_path: Path) -> None:
    changed = recipe(
        tmp_path,
        GOOD,
        "sample.k=3",
        "tune.learning_rate=1e-5",
        "tune.lora.r=4",
        "prompts.heldout=7",
        "prompts.column=q",
    )
    assert changed.sample.k == 3
    assert changed.tune.learning_rate == 1e-5
    assert changed.tune.lora is not None
    assert changed.tune.lora.r == 4
    assert (changed.prompts.path, changed.prompts.heldout, changed.prompts.column) == ("p.jsonl", 7, "q")
    listed = recipe(tmp_path, "model: m\nprompts: p\nreward: [{use: vader}]\n", "reward.0.weight=2")
    assert listed.reward[0].weight == 2
    for wrong, said in [("sample.k", "KEY=VALUE"), ("model.x=1", "no keys"), ("sample.kk=1", "did you mean 'k'?")]:
        with pytest.raises(UserError) as error:
            recipe(tmp_path, GOOD, wrong)
        assert said in str(error.value)


def test_settings_leave_out_what_may_change_on_resuming(tmp_path: Path) -> None:
    one, other = (
        recipe(tmp_path),
        recipe(tmp_path, GOOD, "rounds=50", "out=elsewhere", "keep=all", "evaluate.patience=2"),
    )
    assert one.settings == other.settings
    assert one.settings != recipe(tmp_path, GOOD, "sample.k=9").settings
    assert one.settings["reward.0.use"] == "vader"


def test_shipped_recipes_are_valid() -> None:
    recipes = list((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        load(path)


def test_a_fault_of_sources_is_the_only_one(tmp_path: Path) -> None:
    """Not also that k, their sum, cannot be told."""
    with pytest.raises(UserError) as fault:
        parse({"model": "m", "prompts": "p.jsonl", "reward": "x:y", "sample": {"sources": {"t": {"k": 3}}}})
    assert str(fault.value) == "recipe: sample.sources.t.use: is missing; use policy, model, endpoint, pool"

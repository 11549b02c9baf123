"""What a run hands on opens where it is meant to: datasets, TRL, AlpacaEval's reader, peft, transformers, a Hub."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import PIL.Image
import pytest
import torch
import yaml
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st
from test_cli import call
from transformers import AutoModelForCausalLM, AutoTokenizer

from raftune import demonstrations, files, preferences, table
from raftune.picture import Picture, PictureCodec
from raftune.prompts import read_rows
from raftune.protocols import Codec
from raftune.share.formats import extremes, instruction
from raftune.types import Candidate, Prompt, Scored, Text

EVIL = "<script>alert(1)</script> & \u2028 | ```"
RECIPE: dict[str, Any] = {
    "modality": "text",
    "model": "/home/somebody/models/tiny",
    "prompts": {"path": "/home/somebody/secret/prompts.jsonl"},
    "reward": [{"use": "classifier:/home/somebody/judge", "name": None, "weight": 1.0}],
    "sample": {"prompts_per_round": 4, "k": 3, "sources": {"gpt": {"url": "https://me:word@example.org/v1"}}},
    "select": {"rule": "best"},
    "rounds": 2,
    "seed": 0,
    "out": "/home/somebody/runs/mine",
}


def prompt(number: int, chat: bool) -> Prompt:
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {number}?"})
    return Prompt(f"p{number}", turns if chat else f"Question {number}? {EVIL}")


def said(number: int, chat: bool = False, text: str = "answer") -> list[Scored]:
    """Four prompts × three candidates: in round 1 those of p0 all tie, p1's first is not scored; two of p2 say the
    same thing with different rewards."""
    rewards = [[0.5] * 3, [None, 0.1, 0.9], [0.2, 0.8, 0.8], [-1.0, 0.25 * number, -1.0]]
    words = [(text, p, k) for p in range(4) for k in range(3)]
    return [
        Scored(Candidate(prompt(p, chat), k, Text(f"{word} {p}/{0 if p == 2 else k}/{number} {EVIL}")), rewards[p][k])
        for word, p, k in words
    ]


def best(some: Sequence[Scored]) -> list[Scored]:
    groups = itertools.groupby(some, lambda one: one.candidate.prompt.id)
    return [max((o for o in group if o.reward is not None), key=lambda o: o.reward or 0.0) for _, group in groups]


def a_run(folder: Path, chat: bool = False, codec: Codec | None = None, outputs: Any = None, **recipe: Any) -> Path:
    """A run directory, made by hand: two rounds are committed, the third is not."""
    codec, outputs = codec or table.TextCodec(), outputs or (lambda number: said(number, chat))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(RECIPE | recipe))
    files.write_json(folder / "fingerprint", {"model": (RECIPE | recipe)["model"], "prompts.path sha256": "00"})
    for number in range(4):
        here = folder / "rounds" / f"{number:04d}"
        table.write_scored(here / "heldout.parquet", outputs(10 + number), codec)
        row = {"round": number, "heldout/reward_mean": 0.2 * min(number, 2), "heldout/reward_se": 0.03}
        files.write_json(here / "metrics.json", row | {"alarms": [f"length: {EVIL}"] if number == 2 else []})
        if number:
            scored = outputs(number)
            chosen = {table.key_of(one) for one in best(scored)}
            table.write_scored(here / "scored.parquet", scored, codec, chosen)
            table.write_scored(here / "chosen.parquet", best(scored), codec, chosen)
        if number in (1, 2):
            (here / "DONE").touch()
    return folder


def exported(run: Path, kind: str, out: Path, *more: object) -> Any:
    result = call("export", run, "--format", kind, "--out", out, *more)
    assert result.exit_code == 0, result.output + result.stderr
    return result


def loaded(cache: Path, *what: Any, **options: Any) -> datasets.Dataset:
    found: Any = load_dataset(*map(str, what), split="train", cache_dir=str(cache), **options)
    return found


def refused(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("chat", [False, True])
def test_sft_is_what_was_chosen(tmp_path: Path, suffix: str, chat: bool) -> None:
    run, out = a_run(tmp_path / "run", chat), tmp_path / f"sft{suffix}"
    exported(run, "sft", out)
    rows = loaded(tmp_path / "cache", "json" if suffix == ".jsonl" else "parquet", data_files=str(out))
    expected = [(n, one) for n in (1, 2) for one in best(said(n, chat))]  # not of round 3, which is not committed
    assert len(rows) == len(expected) == 8
    for row, (number, one) in zip(rows, expected, strict=True):
        text = str(one.candidate.output)
        content = one.candidate.prompt.content
        told = (list(content), [{"role": "assistant", "content": text}]) if chat else (content, text)
        assert (row["prompt"], row["completion"]) == told
        assert (row["round"], row["prompt_id"], row["reward"]) == (number, one.candidate.prompt.id, one.reward)
    ours = demonstrations.parse(read_rows(str(out)))
    assert [one.output for one in ours] == [str(one.candidate.output) for _, one in expected]


@pytest.mark.parametrize("chat", [False, True])
def test_pairs_are_the_best_against_the_worst(tmp_path: Path, chat: bool) -> None:
    run, out = a_run(tmp_path / "run", chat), tmp_path / "pairs.jsonl"
    exported(run, "pairs", out, "--round", 1)
    rows = [json.loads(line) for line in out.read_text().splitlines() if line]
    shown = [(row["prompt_id"], row["score_chosen"], row["score_rejected"]) for row in rows]
    assert shown == [("p1", 0.9, 0.1), ("p3", 0.25, -1.0)]  # p0 ties, p2's best says what its worst says
    examples, _ = preferences.parse(read_rows(str(out)))
    assert [one.rejected.answer for one in examples if isinstance(one, preferences.Pair)] == [
        f"answer 1/1/1 {EVIL}",
        f"answer 3/0/1 {EVIL}",  # the first of the lowest
    ]
    exported(run, "pairs", out, "--round", 1, "--margin", 0.8)  # and 0.9 - 0.1 is no more than that
    assert [json.loads(line)["prompt_id"] for line in out.read_text().splitlines()] == ["p3"]
    assert "no prompt has two outputs" in refused("export", run, "--format", "pairs", "--out", out, "--margin", 2)
    assert out.read_text()  # what was there stays


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([None, 0.0, 0.5, 1.0])), max_size=30),
    st.sampled_from([0, 0.5]),
)
def test_extremes_are_those_of_a_search_by_hand(pairs: list[tuple[int, float | None]], margin: float) -> None:
    some = [Scored(Candidate(Prompt(f"p{p}", "x"), k, Text("y")), reward) for k, (p, reward) in enumerate(pairs)]
    from raftune.columns import columns_of

    high, low = extremes(columns_of(some), margin)
    expected = []
    for name in dict.fromkeys(one.candidate.prompt.id for one in some):
        known = [one for one in some if one.candidate.prompt.id == name and one.reward is not None]
        if known:
            top, bottom = max(known, key=lambda o: o.reward or 0.0), min(known, key=lambda o: o.reward or 0.0)
            if (top.reward or 0.0) - (bottom.reward or 0.0) > margin:
                expected.append((top.candidate.index, bottom.candidate.index))
    assert list(zip(high.tolist(), low.tolist(), strict=True)) == expected


def test_a_folder_is_a_data_set_with_its_card(tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run"), tmp_path / "data"
    exported(run, "sft", out, "--all")
    rows = loaded(tmp_path / "cache", out, "sft")
    assert len(rows) == 22  # of 24 those with a reward
    exported(run, "sft", out)  # an earlier export may be replaced
    card = (out / "README.md").read_text()
    assert "| `sft` | 8 |" in card and "2304.06767" in card
    (out / "README.md").write_text("my own")
    assert "holds something else" in refused("export", run, "--format", "sft", "--out", out)


def test_alpacaeval_reads_its_rows(tmp_path: Path) -> None:
    """As alpaca_eval 0.6 does: ``load_or_convert_to_dataframe`` is ``pandas.read_json``, outputs are matched by
    instruction, and one name of a generator names the model."""
    run, out = a_run(tmp_path / "run"), tmp_path / "outputs.json"
    exported(run, "alpacaeval", out)
    frame = pandas.read_json(out)
    held = [one for one in said(12) if one.candidate.index == 0]  # round 2 is the best
    assert frame["output"].tolist() == [str(one.candidate.output) for one in held]
    assert frame["instruction"].tolist() == [one.candidate.prompt.content for one in held]
    assert frame["instruction"].is_unique and set(frame["generator"]) == {"run-round-2"}
    assert set(frame["dataset"]) == {"prompts"}
    exported(run, "alpacaeval", out, "--round", 0, "--generator", "before")
    assert set(pandas.read_json(out)["generator"]) == {"before"}
    assert instruction(prompt(3, True)) == "Question 3?"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    def outputs(number: int) -> list[Scored]:
        draw = np.random.default_rng(number)
        images = [PIL.Image.fromarray(draw.integers(0, 255, (8, 8, 3), np.uint8)) for _ in range(4)]
        return [
            Scored(Candidate(Prompt(f"p{n // 2}", f"a {EVIL} cow"), n % 2, Picture.of(image)), float(n))
            for n, image in enumerate(images)
        ]

    return a_run(tmp_path / "run", codec=PictureCodec(), outputs=outputs, modality="image")


def test_imagefolder_has_the_pictures(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "images"
    exported(pictures, "imagefolder", out)
    folder = loaded(tmp_path / "cache", "imagefolder", data_dir=str(out))
    script = loaded(tmp_path / "cache", "imagefolder", data_files=str(out / "**"))  # as diffusers' script asks
    chosen = [
        one
        for number in (1, 2)
        for one in table.read_scored(pictures / "rounds" / f"{number:04d}" / "chosen.parquet", PictureCodec())
    ]
    for rows in (folder, script):
        assert {"image", "text"} <= set(rows.column_names) and len(rows) == len(chosen) == 4
        for row, one in zip(rows, chosen, strict=True):
            assert np.array_equal(np.asarray(row["image"]), np.asarray(one.candidate.output.image))
            assert (row["text"], row["reward"]) == (f"a {EVIL} cow", one.reward)
    gone = chosen[0].candidate.output.path
    assert gone is not None
    gone.unlink()
    result = exported(pictures, "imagefolder", out)
    assert str(gone.name) in result.output and len(loaded(tmp_path / "cache2", "imagefolder", data_dir=str(out))) == 3
    exported(pictures, "imagefolder", out, "--all")
    assert "not for a run of image" in refused("export", pictures, "--format", "sft", "--out", tmp_path / "x.jsonl")


def test_a_run_that_goes_on_or_is_damaged(tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run"), tmp_path / "sft.jsonl"
    whole = run / "rounds" / "0001" / "chosen.parquet"
    whole.write_bytes(whole.read_bytes()[:-40])
    result = exported(run, "sft", out)
    assert "note:" in result.output and "0001" in result.output and len(out.read_text().splitlines()) == 4
    assert "damaged" in refused("export", run, "--format", "sft", "--out", out, "--round", 1)
    assert "--round 3: is not committed" in refused("export", run, "--format", "sft", "--out", out, "--round", 3)
    whole.unlink()
    (run / "config.yaml").unlink()  # as `raft()` leaves a run
    assert f"{whole}: is not there" in exported(run, "sft", out).output
    (run / "rounds" / "0001" / "DONE").unlink()
    (run / "rounds" / "0002" / "DONE").unlink()
    assert "nothing is chosen yet" in refused("export", run, "--format", "sft", "--out", out)
    assert "no round is committed" in refused("push", run, "--dry-run")


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run"), tmp_path / "notes.jsonl"
    assert "give a run directory" in refused("export", tmp_path, "--format", "sft", "--out", out)
    assert "not for a run of text" in refused("export", run, "--format", "imagefolder", "--out", tmp_path / "i")
    assert "sft is written as .jsonl" in refused("export", run, "--format", "sft", "--out", tmp_path / "a.csv")
    assert "--margin: is not for" in refused("export", run, "--format", "sft", "--out", out, "--margin", 1)
    out.write_text('{"prompt": "mine"}\n')
    assert "something else" in refused("export", run, "--format", "sft", "--out", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    for kind in ("sft", "policy"):
        assert "something else" in refused("export", run, "--format", kind, "--out", tmp_path / "mine")
    assert "were not kept" in refused("export", run, "--format", "policy", "--out", tmp_path / "p", "--round", 1)
    bare = a_run(tmp_path / "bare")
    for policy in bare.glob("rounds/*/policy"):
        shutil.rmtree(policy)
    assert "there are those of no round" in refused("push", bare, "--round", 1, "--dry-run")
    assert "--to a b" in refused("push", run, "--to", "a b", "--dry-run")
    mixed = lambda number: said(number, chat=number == 2)  # noqa: E731
    other = a_run(tmp_path / "other", outputs=mixed)
    assert "texts and chats" in refused("export", other, "--format", "sft", "--out", tmp_path / "m.jsonl")
    exported(other, "sft", tmp_path / "m.jsonl", "--round", 2)


@pytest.mark.parametrize("chat", [False, True])
def test_trl_learns_from_both(tmp_path: Path, tiny: Path, chat: bool) -> None:
    trl = pytest.importorskip("trl")
    run = a_run(tmp_path / "run", chat)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    plain = {"max_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no"}
    plain |= {"per_device_train_batch_size": 2, "output_dir": str(tmp_path / "out"), "disable_tqdm": True}
    plain |= {"activation_checkpointing": False, "logging_steps": 1, "learning_rate": 1e-3}
    for kind, config, trainer in (("sft", trl.SFTConfig, trl.SFTTrainer), ("pairs", trl.DPOConfig, trl.DPOTrainer)):
        exported(run, kind, tmp_path / f"{kind}.jsonl")
        rows = loaded(tmp_path / "cache", "json", data_files=str(tmp_path / f"{kind}.jsonl"))
        model = AutoModelForCausalLM.from_pretrained(tiny)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        learner = trainer(model=model, args=config(**plain), train_dataset=rows, processing_class=tokenizer)
        assert np.isfinite(learner.train().training_loss)
        assert any(not torch.equal(tensor, before[name]) for name, tensor in learner.model.state_dict().items())

"""Pictures through the command line: a run from recipe to contact sheet, the stages on files, damage, SIGKILL."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline
from test_cli import call, write_recipe
from test_kill import killed_at, outcome, shards

from raftune import table
from raftune.picture import Picture, PictureCodec
from raftune.pipelines import LORA
from raftune.types import Scored

CODEC = PictureCodec()
PipelineOf = Callable[..., Path]
MONITORS = """
import numpy as np

def brightness(prompts, images):
    return [float(np.asarray(image).mean()) for image in images]

def broken(images):
    raise RuntimeError("no such luck")

def slow(images):
    import time
    time.sleep(0.2)
    return [-float(np.asarray(image).std()) for image in images]
"""
PROMPTS = [{"id": "p0", "prompt": "a red seven"}, {"id": "p1", "prompt": "a blue circle upon a hill"}]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with prompts of two texts, others to evaluate on, and rewards."""
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    (tmp_path / "others.jsonl").write_text('{"id": "o0", "prompt": "a green cow"}')
    (tmp_path / "my_rewards.py").write_text(MONITORS)
    return tmp_path


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scored(run: Path, number: int, name: str = "scored") -> list[Scored]:
    return table.read_scored(run / "rounds" / f"{number:04d}" / f"{name}.parquet", CODEC)


def brightness(some: Sequence[Scored]) -> float:
    return float(np.mean([np.asarray(one.candidate.output.image).mean() for one in some]))


def jpeg(some: Sequence[Scored]) -> list[float]:
    import io

    sizes = []
    for one in some:
        stream = io.BytesIO()
        one.candidate.output.image.save(stream, "jpeg", quality=95)
        sizes.append(-len(stream.getvalue()) / 1000)
    return sizes


def one_line(result: Any, *said: str) -> None:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.strip().splitlines() if line.startswith("raftune: ")]
    assert result.stderr.strip().splitlines() == lines[-1:], result.stderr
    assert "Traceback" not in result.output
    for part in said:
        assert part in lines[-1]


@pytest.mark.parametrize("kind", ["sd3", "sdxl"])
def test_a_run_from_recipe_to_contact_sheet(kind: str, pictures: Path, pipeline_of: PipelineOf) -> None:
    also = {"others": {"path": "others.jsonl", "k": 3, "sample": {"height": 8, "width": 24}}}
    evaluate = {"k": 2, "monitor": "my_rewards.py:brightness", "also": also}
    recipe = write_recipe(pictures, pipeline_of(kind), "image", evaluate=evaluate)
    result = call("run", recipe, "--out", pictures / "run", "--set", "keep=all")
    assert result.exit_code == 0, result.output
    run, rows = pictures / "run", rows_of(pictures / "run")
    assert [row["round"] for row in rows] == [0, 1, 2]
    probed = {
        f"{name}/{figure}" for name in ("heldout", "others") for figure in ("reward_mean", "monitor", "diversity")
    }
    probed |= {"heldout/reward/jpeg-compressibility", "heldout/flagged", "time/evaluate_s", "memory/peak_bytes"}
    assert all(probed <= row.keys() for row in rows)
    promised = {"sample/reward_mean", "chosen/reward_mean", "sample/diversity", "sample/pictures_per_s", "tune/loss"}
    promised |= {f"time/{stage}_s" for stage in ("sample", "score", "select", "tune", "round")}
    promised |= {"tune/pictures_per_s", "tune/pictures", "sample/flagged", "sample/candidates"}
    assert promised <= rows[2].keys()
    assert promised.isdisjoint(rows[0])
    for number, row in enumerate(rows):
        held, others = scored(run, number, "heldout"), scored(run, number, "others")
        assert [one.candidate.prompt.content for one in held] == [PROMPTS[i]["prompt"] for i in (0, 0, 1, 1)]
        assert [one.candidate.output.image.size for one in others] == [(24, 8)] * 3
        for name, some in [("heldout", held), ("others", others)]:
            assert row[f"{name}/reward_mean"] == pytest.approx(sum(jpeg(some)) / len(some))
            assert row[f"{name}/monitor"] == pytest.approx(brightness(some))
    assert rows[2]["chosen/reward_mean"] > rows[2]["sample/reward_mean"]
    assert rows[2]["heldout/reward_mean"] != rows[0]["heldout/reward_mean"]
    for one in scored(run, 1, "chosen"):  # monitors choose nothing
        rivals = [r for r in scored(run, 1) if r.candidate.prompt == one.candidate.prompt]
        assert one.reward == max(jpeg(rivals))
        assert one.parts.keys() == {"jpeg-compressibility"}
    bare: Any = DiffusionPipeline.from_pretrained(pipeline_of(kind))
    bare.load_lora_weights(run / "rounds" / "0002" / "policy")
    assert "before and after round" in result.output
    sheet = PIL.Image.open(run / "contact-sheet.png")
    assert np.asarray(sheet.convert("L")).std() > 10
    before, held = shards(run), {path: path.stat().st_mtime_ns for path in run.glob("rounds/*/*.parquet")}
    again = call("run", recipe, "--out", run, "--set", "keep=all")
    assert again.exit_code == 0
    assert rows_of(run) == rows
    assert shards(run) == before
    assert {path: path.stat().st_mtime_ns for path in run.glob("rounds/*/*.parquet")} == held


def test_a_floor_and_a_buffer(pictures: Path, pipeline_of: PipelineOf) -> None:
    """What lies below the floor is not learned from; the buffer brings the round before's winners back."""
    tune = {"learning_rate": 1e-2, "batch_size": 9, "steps": 9, "max_epochs": 1, "lora": {"r": 2, "alpha": 4}}
    recipe = write_recipe(pictures, pipeline_of(), "image", tune=tune, select={"buffer": 1})
    assert call("run", recipe, "--out", pictures / "plain").exit_code == 0
    assert [row.get("tune/pictures") for row in rows_of(pictures / "plain")] == [None, 2, 4]
    drawn = scored(pictures / "plain", 1)
    best = {one.candidate.prompt.id: one for one in sorted(drawn, key=lambda one: one.reward or 0)}
    better, worse = sorted(best.values(), key=lambda one: -(one.reward or 0))
    assert better.reward != worse.reward
    floor = (better.reward + worse.reward) / 2
    with_floor = ["run", recipe, "--set", "rounds=1", "--set"]
    floored = call(*with_floor, f"select.floor={floor}", "--out", pictures / "floored")
    assert floored.exit_code == 0, floored.output
    assert [one.candidate.prompt.id for one in scored(pictures / "floored", 1, "chosen")] == [
        better.candidate.prompt.id
    ]
    assert rows_of(pictures / "floored")[1]["tune/pictures"] == 1
    none = call(*with_floor, "select.floor=0", "--out", pictures / "none")
    one_line(none, "select: Floor(rule=Best(n=1, skip_tied=False), floor=0", "chose none of 8 candidates")
    assert len(list((pictures / "none").glob("rounds/0001/candidates/*.parquet"))) == 2


def test_every_stage_alone_on_files(pictures: Path, pipeline_of: PipelineOf) -> None:
    """The tables lie in folders of their own, and find their pictures all the same."""
    files = {name: pictures / name / "table.parquet" for name in ("candidates", "scored", "chosen")}
    policy, prompts = pipeline_of(), pictures / "prompts.jsonl"
    drawing = ["--steps", 2, "--height", 16, "--width", 24]
    sampled = call(
        *("sample", "--policy", policy, "--prompts", prompts, "--k", 3, *drawing, "--guidance", 3.0, "--seed", 5),
        *("--negative-prompt", "grey", "--scheduler", "EulerDiscreteScheduler", "--out", files["candidates"]),
    )
    assert sampled.exit_code == 0, sampled.output
    rewards = ["--reward", "jpeg-compressibility", "--reward", f"{pictures / 'my_rewards.py'}:brightness"]
    score = call("score", "--candidates", files["candidates"], *rewards, "--out", files["scored"])
    assert score.exit_code == 0, score.output
    assert call("select", "--scored", files["scored"], "--out", files["chosen"]).exit_code == 0
    tune = ["tune", "--policy", policy, "--chosen", files["chosen"], "--steps", 2, "--max-epochs", 2, "--lora-r", 2]
    tuned = call(*tune, "--learning-rate", 1e-2, "--out", pictures / "policy")
    assert tuned.exit_code == 0, tuned.output
    full = call(*tune, "--full", "--out", pictures / "full")
    assert full.exit_code == 0, full.output
    candidates = table.read_candidates(files["candidates"], CODEC)
    assert [one.output.image.size for one in candidates] == [(24, 16)] * 6
    scored_ = table.read_scored(files["scored"], CODEC)
    assert [one.candidate for one in scored_] == candidates
    assert [one.parts["jpeg-compressibility"] for one in scored_] == jpeg(scored_)
    assert all(one.reward == sum(one.parts.values()) for one in scored_)
    chosen = table.read_scored(files["chosen"], CODEC)
    assert [one.reward for one in chosen] == [max(s.reward for s in scored_[at : at + 3]) for at in (0, 3)]
    assert chosen[0].candidate.output.image.size == (24, 16)
    assert (pictures / "policy" / LORA).exists()
    DiffusionPipeline.from_pretrained(pictures / "full")
    figures = {}
    for name in ("policy", "full"):
        out = pictures / f"{name}.json"
        evaluate = ["evaluate", "--policy", pictures / name, "--prompts", prompts, "--k", 2, *drawing, "--out", out]
        evaluated = call(*evaluate, *rewards)
        assert evaluated.exit_code == 0, evaluated.output
        figures[name] = json.loads(out.read_text())
        expected = {"diversity", "flagged", "reward_mean", "reward_se", "best_of_2"}
        expected |= {"reward/brightness", "reward/jpeg-compressibility"}
        assert figures[name].keys() == {f"heldout/{figure}" for figure in expected}
    assert figures["policy"] != figures["full"]


def test_options_of_the_other_modality_are_refused(pictures: Path, pipeline_of: PipelineOf, tiny: Path) -> None:
    prompts = ["--prompts", pictures / "prompts.jsonl", "--out", pictures / "x"]
    sample = ["sample", "--policy"]
    one_line(call(*sample, pipeline_of(), *prompts, "--max-new-tokens", 3), "--max-new-tokens: is not for a policy")
    one_line(call(*sample, tiny, *prompts, "--height", 16), "--height: is not for a policy that makes text")
    reward = ["--reward", "jpeg-compressibility"]
    one_line(call("evaluate", "--policy", pipeline_of(), *prompts, *reward, "--max-new-tokens", 3), "--max-new-tokens")
    assert call(*sample, pipeline_of(), *prompts[:2], "--k", 1, "--steps", 1, "--out", pictures / "c").exit_code == 0
    assert call("score", "--candidates", pictures / "c", *reward, "--out", pictures / "s").exit_code == 0
    tune = ["tune", "--policy", pipeline_of(), "--chosen", pictures / "s", "--out", pictures / "policy"]
    one_line(call(*tune, "--epochs", 2), "--epochs: is not for image")
    text = call(*sample, tiny, *prompts[:2], "--k", 1, "--max-new-tokens", 2, "--out", pictures / "t")
    assert text.exit_code == 0
    one_line(call("score", "--candidates", pictures / "t", *reward, "--out", pictures / "s"), "scores pictures")


@pytest.mark.parametrize("damage", ["cut", "gone", "another"])
def test_a_damaged_picture_is_one_line_and_its_mend_mends(damage: str, pictures: Path, pipeline_of: PipelineOf) -> None:
    """The round stands at its candidates when a picture is lost; the others are not drawn again."""
    recipe, run = write_recipe(pictures, pipeline_of(), "image", rounds=1), pictures / "run"
    assert call("run", recipe, "--out", run).exit_code == 0
    here, wanted = run / "rounds" / "0001", scored(run, 1)
    for name in ("DONE", "scored.parquet", "chosen.parquet"):
        (here / name).unlink()
    shard = here / "candidates" / "00001.parquet"
    lost = table.read_candidates(shard, CODEC)[2].output
    whole = lost.path.read_bytes()
    {
        "cut": lambda: lost.path.write_bytes(whole[:100]),
        "gone": lost.path.unlink,
        "another": lambda: lost.path.write_bytes(Picture.of(PIL.Image.new("RGB", (16, 16))).png),
    }[damage]()
    before = shards(run)
    failed = call("run", recipe, "--out", run)
    one_line(failed, lost.path.name, "in a run, delete the table that names it and run again")
    assert shards(run) == before
    shard.unlink()
    mended = call("run", recipe, "--out", run)
    assert mended.exit_code == 0, mended.output
    assert lost.path.read_bytes() == whole
    assert [one.candidate for one in scored(run, 1)] == [one.candidate for one in wanted]
    now = shards(run)
    again = {name for name in before if name not in now or now[name] != before[name]}
    assert {Path(name).name for name in again} <= {shard.name, lost.path.name}


def test_more_rounds_go_on_where_the_run_ended(pictures: Path, pipeline_of: PipelineOf) -> None:
    recipe = write_recipe(pictures, pipeline_of(), "image")
    assert call("run", recipe, "--out", pictures / "a", "--set", "rounds=1").exit_code == 0
    assert call("run", recipe, "--out", pictures / "a", "--set", "rounds=2").exit_code == 0
    assert call("run", recipe, "--out", pictures / "b").exit_code == 0
    assert outcome(pictures / "a").keys() == outcome(pictures / "b").keys()
    assert outcome(pictures / "a") == outcome(pictures / "b")


def test_dry_run_draws_a_picture_and_checks_the_further_prompts(pictures: Path, pipeline_of: PipelineOf) -> None:
    recipe = write_recipe(pictures, pipeline_of(), "image")
    dry = ["run", recipe, "--out", pictures / "run", "--dry-run"]
    ready = call(*dry)
    assert ready.exit_code == 0, ready.output
    assert "16×16 picture" in ready.output
    for change, said in [
        ("evaluate.also.heldout.k=1", "evaluate.also.heldout: figures of that name have another meaning"),
        ("evaluate.also.far.path=absent.jsonl", "absent.jsonl: no such file"),
        ("evaluate.also.far.sample.heigth=8", "evaluate.also.far.sample.heigth: no such key; did you mean 'height'?"),
        ("evaluate.monitor=my_rewards.py:nobody", "nobody"),
        ("evaluate.monitor=[{use: 'my_rewards.py:brightness', name: jpeg-compressibility}]", "jpeg-compressibility"),
        ("model=" + str(pictures), "has no config.json and no model_index.json"),
        ("sample.height=15", "sample.height: 15 is not a multiple of 2"),
        ("evaluate.also.far.sample.k=3", "evaluate.also.far.sample.k: does nothing there"),
        ("evaluate.monitor=my_rewards.py:broken", "reward 'monitor' raised"),
        ("tune.lora.target_modules=[nope]", "tune.lora"),
    ]:
        one_line(call(*dry, "--set", change), said)
    assert not (pictures / "run").exists()


def test_what_was_drawn_to_evaluate_stays_when_a_monitor_fails(pictures: Path, pipeline_of: PipelineOf) -> None:
    recipe = write_recipe(pictures, pipeline_of(), "image", evaluate={"monitor": "my_rewards.py:broken", "k": 2})
    one_line(call("run", recipe, "--out", pictures / "run"), "reward 'monitor' raised")
    drawn = pictures / "run" / "rounds" / "0000" / "heldout" / "candidates"
    kept = {path: path.stat().st_mtime_ns for path in drawn.rglob("*.p*")}
    assert any(path.suffix == ".png" for path in kept)
    one_line(call("run", recipe, "--out", pictures / "run"), "reward 'monitor' raised")
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*.p*")} == kept


POINTS = [  # what is on disk of a round when the process is killed
    *("rounds/0001/candidates/00000.parquet", "rounds/0001/scored.parquet", "rounds/0001/policy.tuning/step.json"),
    *("rounds/0001/policy", "rounds/0001/DONE"),
]


def test_killed_at_every_point_of_one_run(pictures: Path, pipeline_of: PipelineOf) -> None:
    """No finished table, picture or adapter is made again, and the end is that of an undisturbed run."""
    tune = {"learning_rate": 1e-2, "batch_size": 1, "steps": 6, "save_steps": 1, "lora": {"r": 2, "dropout": 0.1}}
    sample = {"prompts_per_round": 2, "k": 3, "shard": 1, "steps": 4, "height": 16, "width": 16}
    recipe = write_recipe(
        pictures, pipeline_of(), "image", reward="my_rewards.py:slow", tune=tune, sample=sample, rounds=1
    )
    killed_at(POINTS, recipe, pictures / "run")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as test_cli.process has it: here without another process's seconds of imports
    undisturbed = call("run", recipe, "--out", pictures / "undisturbed", "--set", "keep=all")
    torch.set_num_threads(threads)
    assert undisturbed.exit_code == 0, undisturbed.output
    found = outcome(pictures / "run")
    assert len(found) == 2
    assert found == outcome(pictures / "undisturbed")
    pngs = [
        {path.name for path in (pictures / run).glob("rounds/*/candidates/**/*.png")} for run in ("run", "undisturbed")
    ]
    assert pngs[0] == pngs[1]
    assert len(pngs[0]) == 6

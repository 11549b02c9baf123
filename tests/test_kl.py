"""The KL-shaped reward against full forward passes, and what it does to the choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import candidate, prompts_of
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from raftune import Run, TextLearner, TextSampler, UserError, Weighted, draw, raft, rewards, table
from raftune.build import Parts
from raftune.cli import app
from raftune.experiment import Experiment
from raftune.recipe import parse
from raftune.reward.kl import KlReward
from raftune.score import Rewards
from raftune.tune.lora import Lora

PROMPTS = prompts_of("It was", "A film about", "Nobody knew that")


def total_logprob(folder: Path, prompt: str, output_ids: tuple[int, ...]) -> float:
    """One sequence at a time, the library's own forward, no padding."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    ids = torch.tensor([[*before, *output_ids]])
    with torch.no_grad():
        logprobs_TV = model(ids).logits[0].log_softmax(-1)
    return sum(logprobs_TV[len(before) + step - 1, token].item() for step, token in enumerate(output_ids))


def test_the_penalty_is_the_difference_of_two_forward_passes(model_of: Callable[..., Path]) -> None:
    policy, initial = model_of("llama"), model_of("qwen2")
    drawn = TextSampler(max_new_tokens=7).sample(policy, PROMPTS, 3, (0,))
    for one, value in zip(drawn, KlReward(initial)(drawn), strict=True):
        here = total_logprob(policy, str(one.prompt.content), one.output.token_ids)
        there = total_logprob(initial, str(one.prompt.content), one.output.token_ids)
        assert value == pytest.approx(here - there, abs=2e-3)


def test_the_initial_policy_is_no_way_from_itself(tiny: Path) -> None:
    drawn = TextSampler(max_new_tokens=7).sample(tiny, PROMPTS, 3, (0,))
    assert KlReward(tiny)(drawn) == pytest.approx([0.0] * 9, abs=1e-4)


def test_what_has_no_probability_is_not_scored(tiny: Path) -> None:
    drawn = [*TextSampler(max_new_tokens=4).sample(tiny, PROMPTS[:1], 1, (0,)), candidate("p0", 1, "by a person")]
    assert [value is None for value in KlReward(tiny)(drawn)] == [False, True]


def test_the_reward_is_shaped_by_beta(model_of: Callable[..., Path]) -> None:
    policy, initial = model_of("llama"), model_of("qwen2")
    drawn = TextSampler(max_new_tokens=6).sample(policy, PROMPTS, 4, (0,))
    plain = rewards(lambda completions: [float(len(text)) for text in completions])
    shaped = Rewards((*plain.members, Weighted(KlReward(initial), -0.5)))
    for one, raw in zip(shaped(drawn), plain(drawn), strict=True):
        assert raw.reward is not None and one.reward is not None and one.parts["kl"] is not None
        assert one.reward == pytest.approx(raw.reward - 0.5 * one.parts["kl"])


@pytest.mark.parametrize("lora", [None, Lora(r=4, alpha=8)], ids=["full", "lora"])
def test_a_large_beta_chooses_what_the_initial_policy_finds_likely(
    model_of: Callable[..., Path], tmp_path: Path, lora: Lora | None
) -> None:
    tiny = model_of("llama")
    reward = Rewards((*rewards(lambda completions: [0.0] * len(completions)).members, Weighted(KlReward(tiny), -1e3)))
    learner = TextLearner(learning_rate=1e-2, epochs=3, lora=lora)
    with Run(tmp_path / "run", tiny) as run:
        rounds = list(
            raft(run, lambda n: draw(PROMPTS, n, 3, 0), TextSampler(max_new_tokens=6), reward, learner, 4, rounds=2)
        )
    for prompt in PROMPTS:  # the second round's policy has moved
        mine = [one for one in rounds[1].scored if one.candidate.prompt.id == prompt.id]
        least = min(
            mine,
            key=lambda one: (
                (one.candidate.logprob or 0.0)
                - total_logprob(tiny, str(prompt.content), one.candidate.output.token_ids)
            ),
        )
        chosen = [one for one in rounds[1].chosen if one.candidate.prompt.id == prompt.id]
        assert [one.candidate.index for one in chosen] == [least.candidate.index]


def experiment(tiny: Path, folder: Path, beta: float) -> Experiment:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(f'{{"prompt": "The film number {i}"}}' for i in range(12)))
    (folder / "mine.py").write_text("def length(completions): return [float(len(text)) for text in completions]")
    raw = {
        "model": str(tiny),
        "prompts": {"path": "prompts.jsonl", "heldout": 4},
        "reward": "mine.py:length",
        "kl_coefficient": beta,
        "sample": {"prompts_per_round": 4, "k": 3, "max_new_tokens": 6},
        "tune": {"learning_rate": 1e-2},
        "rounds": 2,
    }
    return Experiment.open(Parts(parse(raw), folder), folder / f"run-{beta}")


def test_a_recipe_ranks_by_the_shaped_reward_and_evaluates_the_plain_one(tiny: Path, tmp_path: Path) -> None:
    shaped = experiment(tiny, tmp_path, 0.3)
    with shaped.run:
        rows = list(shaped.rounds())
    scored = table.read_scored(tmp_path / "run-0.3/rounds/0002/scored.parquet", table.TextCodec())
    for one in scored:
        assert one.reward == pytest.approx(one.parts["length"] - 0.3 * one.parts["kl"])
    kl = [one.parts["kl"] for one in scored]
    assert rows[2]["sample/kl"] == pytest.approx(sum(kl) / len(kl))  # type: ignore[arg-type]
    assert abs(rows[1]["sample/kl"]) < 1e-3 < rows[2]["sample/kl"]
    for row in rows:
        assert row["heldout/reward_mean"] == row["heldout/reward/length"]


def test_beta_zero_asks_nobody(tiny: Path, tmp_path: Path) -> None:
    plain = experiment(tiny, tmp_path, 0.0)
    with plain.run:
        rows = list(plain.rounds())
    assert "sample/kl" not in rows[2]
    assert plain.parts.shaped is plain.parts.rewards


def test_the_stage_shapes_too(tiny: Path, tmp_path: Path) -> None:
    drawn = TextSampler(max_new_tokens=5).sample(tiny, PROMPTS, 2, (0,))
    table.write_candidates(tmp_path / "candidates.parquet", drawn, table.TextCodec())
    files = ["--candidates", tmp_path / "candidates.parquet", "--out", tmp_path / "scored.parquet", "--reward", "vader"]
    command = ["score", *map(str, files), "--kl-coefficient", "0.5"]
    assert CliRunner().invoke(app, command).exit_code == 2
    assert CliRunner().invoke(app, [*command, "--initial", str(tiny)]).exit_code == 0
    for one in table.read_scored(tmp_path / "scored.parquet", table.TextCodec()):
        assert one.reward == pytest.approx(one.parts["vader"] - 0.5 * one.parts["kl"])


def test_pictures_have_no_kl(tmp_path: Path) -> None:
    raw = {"modality": "image", "model": "m", "prompts": "p.jsonl", "reward": "jpeg-compressibility"}
    assert parse(raw).kl_coefficient == 0.0
    with pytest.raises(UserError, match="kl_coefficient: pictures have no log-probabilities"):
        parse({**raw, "kl_coefficient": 0.1})


@pytest.mark.parametrize("shards", [None, 1])
def test_candidates_of_others_have_no_kl(tiny: Path, shards: int | None) -> None:
    sources = None if shards else {"people": {"use": "pool", "path": "answers.jsonl"}}
    raw = {"model": str(tiny), "prompts": "p.jsonl", "reward": "vader", "kl_coefficient": 0.1}
    recipe = parse(raw | ({"sample": {"sources": sources}} if sources else {}))
    with pytest.raises(UserError, match="kl_coefficient: (a watched folder|sample.sources.people) does not tell"):
        _ = Parts(recipe, shards=shards).shaped

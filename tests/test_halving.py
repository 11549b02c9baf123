"""Halving: fewer draws, the same choice. Held against drawing all K."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import prompts_of

from raftune.build import Parts
from raftune.errors import UserError
from raftune.figures import spared
from raftune.filters import Filtered, Filters
from raftune.rank import parse_rule
from raftune.recipe import parse
from raftune.reward.functions import rewards
from raftune.sample.halving import Halving
from raftune.sample.text import TextSampler
from raftune.types import Candidate, Policy, Prompt, Text, seed_of


@dataclass
class Drawer:
    """Text is a digit drawn at the address; notes what it was asked for."""

    right: float
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    def sample(
        self, policy: Policy, prompts: Sequence[Prompt], k: int, seed: tuple[object, ...], first: int = 0
    ) -> list[Candidate]:
        self.asked.append((len(prompts), first, k))
        return [
            Candidate(prompt, index, Text(self._said(prompt, (*seed, prompt.id, index))))
            for prompt in prompts
            for index in range(first, first + k)
        ]

    def _said(self, prompt: Prompt, address: tuple[object, ...]) -> str:
        draw = random.Random(seed_of(*address))
        return ("yes" if draw.random() < self.right * prompt.columns["ease"] else "no") + " " * draw.randrange(3)


def right(completions: list[str]) -> list[float]:
    return [float("yes" in text) for text in completions]


def prompts() -> list[Prompt]:
    return [Prompt(f"p{i}", "?", {"ease": i / 40}) for i in range(40)]


@pytest.mark.parametrize("k", [1, 6, 16])
@pytest.mark.parametrize("first", [1, 2, 5])
@pytest.mark.parametrize("filters", [None, Filters(regex=r"^\S+\s?$", deduplicate=True)])
def test_what_is_chosen_is_what_all_k_would_give(k: int, first: int, filters: Filters | None) -> None:
    rule = parse_rule("best", floor=1.0)
    select = rule if filters is None else Filtered(rule, filters)
    drawer = Drawer(0.7)
    reward = rewards(right)
    all_k = drawer.sample("p", prompts(), k, (3, 1))
    fewer = Halving(drawer, reward, select, 1.0, first).sample("p", prompts(), k, (3, 1))
    assert select(reward(fewer), (3, 1)) == select(reward(all_k), (3, 1))
    addresses = {(one.prompt.id, one.index): one for one in all_k}
    assert all(addresses[one.prompt.id, one.index] == one for one in fewer)
    counts = {prompt.id: [one.index for one in fewer if one.prompt.id == prompt.id] for prompt in prompts()}
    assert all(found == list(range(len(found))) for found in counts.values())
    solved = {one.candidate.prompt.id for one in select(reward(fewer), ())}
    assert all(len(found) == k for name, found in counts.items() if name not in solved)
    assert [one.prompt.id for one in fewer] == sorted((one.prompt.id for one in fewer), key=lambda name: int(name[1:]))
    assert spared(reward(fewer), k)["spared"] == len(all_k) - len(fewer)
    if k == 16 and filters is None:
        assert len(fewer) < 0.7 * len(all_k)


def test_it_draws_by_halves_and_stops() -> None:
    drawer = Drawer(1.0)
    easy = [Prompt("never", "?", {"ease": 0.0}), Prompt("always", "?", {"ease": 2.0})]
    found = Halving(drawer, rewards(right), parse_rule("best"), 1.0, 2).sample("p", easy, 10, (0,))
    assert drawer.asked == [(2, 0, 2), (1, 2, 2), (1, 4, 4), (1, 8, 2)]
    assert len(found) == 12
    assert spared(rewards(right)(found), 10) == {"stopped_prompts": 1, "spared": 8}


def test_where_the_filters_leave_nothing_it_draws_on() -> None:
    select = Filtered(parse_rule("best"), Filters(regex="maybe"))
    found = Halving(Drawer(1.0), rewards(right), select, 1.0).sample("p", prompts(), 4, (0,))
    assert len(found) == 4 * len(prompts())


def test_later_indices_are_drawn_as_with_all_k(tiny: Path) -> None:
    sampler = TextSampler(max_new_tokens=6)
    asked = prompts_of("The film", "I saw it")
    whole = sampler.sample(str(tiny), asked, 5, (7, 1))
    part = sampler.sample(str(tiny), asked, 3, (7, 1), first=2)
    assert [one.output.token_ids for one in part] == [one.output.token_ids for one in whole if one.index >= 2]
    assert [one.index for one in part] == [2, 3, 4] * 2


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Callable[..., Parts]:
    (tmp_path / "prompts.jsonl").write_text("\n".join(f'{{"prompt": "number {i}"}}' for i in range(12)))

    def of(**changes: Any) -> Parts:
        sample = {"k": 4, "prompts_per_round": 4, "halving": {"solved": 1.0, "first": 1}, "max_new_tokens": 4}
        raw = {"model": str(tiny), "prompts": "prompts.jsonl", "reward": "regex:[aeiou]", "rounds": 1}
        sample |= changes.pop("sample", {})
        return Parts(parse(raw | {"sample": sample} | changes), tmp_path)

    return of


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": {"rule": "top:0.1"}}, "select.rule must be best"),
        ({"select": {"skip_tied": True}}, "skip_tied out"),
        ({"reward": [{"use": "regex:a", "normalise": "zscore"}]}, "normalise: none"),
        ({"reward": "classifier:somewhere"}, "is a model"),
        ({"kl_coefficient": 0.1}, "kl_coefficient at 0"),
        ({"sample": {"k": 2, "sources": {"own": {"use": "policy", "k": 2}}}}, "sample.sources"),
    ],
)
def test_what_would_choose_otherwise_is_refused(
    changes: dict[str, Any], message: str, recipe: Callable[..., Parts]
) -> None:
    with pytest.raises(UserError, match=message):
        _ = recipe(**changes).sources


def test_a_round_of_a_recipe_counts_what_it_spared(recipe: Callable[..., Parts], tmp_path: Path) -> None:
    from raftune.experiment import Experiment

    with (experiment := Experiment.open(recipe(), tmp_path / "run")).run:
        rows = list(experiment.rounds())
        scored = experiment.run.round(1)
    assert rows[1]["sample/spared"] == 16 - rows[1]["sample/candidates"] > 0
    assert 0 < rows[1]["sample/stopped_prompts"] <= 4
    assert "sample/spared" not in rows[0]
    assert scored.done

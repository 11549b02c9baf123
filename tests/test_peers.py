"""The comparison with TRL's trainers: disturbed rewards, the bridge to TRL, the runs, the table."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from conftest import candidate, prompts_of

from raftune import Prompt, Text, Vader, pick, rewards
from raftune.build import Parts
from raftune.config import RewardConfig
from raftune.errors import UserError
from raftune.experiment import Experiment
from raftune.rank import choose, parse_rule
from raftune.recipe import load
from raftune.types import Candidate

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import peers  # noqa: E402
import peers_table  # noqa: E402
import peers_trl  # noqa: E402
from disturbed import Disturbed, bias, normal  # noqa: E402

WORDS = ["good", "bad", "great", "awful", "fine", "sad", "table", "happy", "not", "very"]


class Zero:
    name = "zero"

    def __call__(self, candidates: list[Candidate]) -> list[float | None]:
        return [None if not c.output.text else 0.0 for c in candidates]


def some(prompts: int = 6, k: int = 8) -> list[Candidate]:
    """Candidates with texts of a few words, some of them the same."""
    luck = random.Random(0)
    return [
        Candidate(prompt, index, Text(" ".join(luck.choices(WORDS, k=3))))
        for prompt in prompts_of(*[f"opening {n}" for n in range(prompts)])
        for index in range(k)
    ]


def test_normal_draws_are_normal_and_depend_on_the_address_alone() -> None:
    draws = [normal("a test", n) for n in range(4000)]
    assert draws == [normal("a test", n) for n in range(4000)]
    assert abs(mean(draws)) < 4 / 4000**0.5
    assert abs(stdev(draws) - 1) < 4 / 8000**0.5
    assert abs(mean(x > 1.96 for x in draws) - 0.025) < 0.01


def test_noise_is_drawn_for_each_sample() -> None:
    candidates = some(50, 8)
    values = Disturbed(Zero(), "noise", sigma=2.0)(candidates)
    assert abs(mean(values)) < 4 * 2 / 400**0.5
    assert abs(stdev(values) - 2) < 4 * 2 / 800**0.5
    assert values == [Disturbed(Zero(), "noise", sigma=2.0)([one])[0] for one in candidates]  # no batch, no state
    assert values != Disturbed(Zero(), "noise", sigma=2.0, seed=1)(candidates)
    twins = [Candidate(candidates[0].prompt, index, Text("the same text")) for index in range(2)]
    assert len({*Disturbed(Zero(), "noise")(twins)}) == 2
    again = Candidate(candidates[0].prompt, 0, Text("another round's text"))
    assert Disturbed(Zero(), "noise")([again]) != Disturbed(Zero(), "noise")(candidates[:1])


def test_biases_are_the_papers() -> None:
    """One in five has one of four biases; the mean over the biased is 0, and noise is on top."""
    draws = [bias("a test", n) for n in range(4000)]
    assert abs(mean(draw != 0 for draw in draws) - 0.2) < 4 * (0.16 / 4000) ** 0.5
    assert {draw for draw in draws if draw} == {-0.75, -0.25, 0.5, 1.0}
    candidates = some(60, 8)
    noise, by_prompt, by_sample = (
        Disturbed(Zero(), kind)(candidates) for kind in ("noise", "prompt-bias", "sample-bias")
    )
    shifts = [round(mine - plain, 9) for mine, plain in zip(by_prompt, noise, strict=True)]
    assert [len({*shifts[at : at + 8]}) for at in range(0, 480, 8)] == [1] * 60  # of a prompt all the same
    assert 2 < sum(shifts[at] != 0 for at in range(0, 480, 8)) < 25
    shifts = [round(mine - plain, 9) for mine, plain in zip(by_sample, noise, strict=True)]
    assert 60 < sum(shift != 0 for shift in shifts) < 140
    assert any(0 < sum(shift != 0 for shift in shifts[at : at + 8]) < 8 for at in range(0, 480, 8))


def test_what_is_not_scored_stays_so() -> None:
    for kind in peers.KINDS:
        assert Disturbed(Zero(), kind)([candidate(text="")]) == [None]


@pytest.mark.parametrize("rule", ["best", "best:3", "top:0.1", "top:0.5"])
@pytest.mark.parametrize("kind", ["scale", "shift"])
def test_what_keeps_the_order_keeps_the_choice(rule: str, kind: str) -> None:
    clean, other = rewards(Vader())(some()), rewards(Disturbed(Vader(), kind))(some())
    chosen, now = ([s.candidate for s in choose(parse_rule(rule), one)] for one in (clean, other))
    assert [s.reward for s in clean] != [s.reward for s in other]
    assert chosen == now


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        ("noise", "noise"),
        ("prompt_bias", "prompt-bias"),
        ("sample_bias", "sample-bias"),
        ("scaled", "scale"),
        ("shifted", "shift"),
    ],
)
def test_functions_for_recipes_say_the_same_as_the_wrapper(function: str, kind: str) -> None:
    reward = pick.reward(RewardConfig(use=f"{BENCH / 'disturbed.py'}:{function}"))
    assert reward(some()) == Disturbed(Vader(), kind)(some())
    chat = Prompt("c", ({"role": "user", "content": "How was it?"},), {"label": 1})
    assert reward([Candidate(chat, 0, Text("great"))]) == Disturbed(Vader(), kind)([Candidate(chat, 0, Text("great"))])


def test_trl_calls_our_rewards_with_the_candidates_that_we_would_have() -> None:
    seen: list[Candidate] = []

    def watching(prompts: list[str], completions: list[str], label: list[str]) -> list[float | None]:
        assert prompts == ["b", "b", "a", "a"]
        return [float(len(completion)) + (own == "x") for completion, own in zip(completions, label, strict=True)]

    class Seeing(Zero):
        def __call__(self, candidates: list[Candidate]) -> list[float | None]:
            seen.extend(candidates)
            return [1.0, None, 1.0, 1.0]

    a, b = Prompt("1", "a", {"label": "x"}), Prompt("2", "b", {"label": "y"})
    reward, means = peers_trl.training_reward(rewards(watching), [[b, a], [a, b]])
    given: dict[str, Any] = {"completions": ["1", "22", "333", ""], "completion_ids": [[1], [2, 3], [4], [5]]}
    assert reward(prompt_id=["2", "2", "1", "1"], trainer_state=None, **given) == [1.0, 2.0, 4.0, 1.0]
    assert means == [2.0]
    with pytest.raises(RuntimeError, match="step 2: TRL drew other prompts"):
        reward(prompt_id=["2", "2", "1", "1"], **given)
    reward, means = peers_trl.training_reward(rewards(Seeing()), [[b, a]])
    assert reward(prompt_id=["2", "2", "1", "1"], **given) == [1.0, None, 1.0, 1.0]
    assert means == [1.0]  # of what was scored
    assert [(one.prompt.id, one.index) for one in seen] == [("2", 0), ("2", 1), ("1", 0), ("1", 1)]
    assert [one.output.token_ids for one in seen] == [(1,), (2, 3), (4,), (5,)]


REWARD = (
    "def vowels(completions):\n    return [sum(c in 'aeiou' for c in text) - len(text) / 9 for text in completions]\n"
)


def task_of(tiny: Path, folder: Path, method: str = "raft", **changes: Any) -> peers.Task:
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(REWARD)
    rows = [json.dumps({"prompt": f"opening number {n}"}) for n in range(12)]
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    recipe = {
        "model": str(tiny),
        "prompts": {"path": "prompts.jsonl", "heldout": 4},
        "reward": "own.py:vowels",
        "sample": {"prompts_per_round": 3, "k": 4, "max_new_tokens": 6},
        "tune": {"learning_rate": 1e-3},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    given = {"learning_rate": None, "seed": 3, "steps": 2, "minutes": None, "evaluate_every": 1, "disturb": "none"}
    given |= {"sigma": 1.0, "rows": 4, "set": [], "trl": [], "out": folder / "out", **changes}
    return peers.Task(recipe=str(folder / "recipe.yaml"), method=method, **given)


def run(task: peers.Task) -> dict[str, Any]:
    trained = peers.train_raft(task) if task.method == "raft" else peers_trl.train_peer(task)
    return peers.result(task, json.loads(json.dumps(trained)))


def heldout(result: dict[str, Any]) -> list[dict[str, float]]:
    return [result["heldout"][step] for step in sorted(result["heldout"])]


def test_raft_here_is_raft_there(tiny: Path, tmp_path: Path) -> None:
    """The same figures as a run of the recipe, and again when the training reward is shifted or scaled."""
    task = task_of(tiny, tmp_path / "here")
    found = run(task)
    recipe = load(Path(task.recipe), ["rounds=2", "seed=3"])
    parts = Parts(recipe, Path(task.recipe).parent)
    from raftune.store import Run

    with Run(tmp_path / "there", parts.model, parts.modality.codec, parts.settings) as there:
        rows = list(Experiment(parts, there).rounds())
    for name in ("reward_mean", "perplexity", "kl", "distinct_2", "length_mean"):
        key = f"heldout/{name}"
        assert [figures[key] for figures in heldout(found)] == [row[key] for row in rows]
    assert found["sample_reward"] == [row["sample/reward_mean"] for row in rows[1:]]
    assert found["samples"] == 2 * 3 * 4 and found["steps"] == 2
    assert found["before"] == found["heldout"][0] and found["after"] == found["heldout"][2] != found["before"]
    shifted = run(task_of(tiny, tmp_path / "shifted", disturb="shift"))
    assert heldout(shifted) == heldout(found)
    assert shifted["sample_reward"] == pytest.approx([reward + 100 for reward in found["sample_reward"]])
    noisy = run(task_of(tiny, tmp_path / "noisy", disturb="noise", sigma=5.0))
    assert noisy["before"] == found["before"] and noisy["after"] != found["after"]


def test_a_run_that_is_late_stops_at_a_step(tiny: Path, tmp_path: Path) -> None:
    task = task_of(tiny, tmp_path / "late", steps=5, minutes=1e-6, evaluate_every=None)
    found = run(task)
    assert found["steps"] == 1 and sorted(found["heldout"]) == [0, 1]
    assert peers.train_raft(task)["step_seconds"] == found["step_seconds"]  # nor does it go on when asked again


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_peer_that_learns_nothing_ends_where_it_began(method: str, tiny: Path, tmp_path: Path) -> None:
    """At learning rate 0 what is saved and evaluated is the initial model; at a high one it is another."""
    pytest.importorskip("trl")
    found = run(task_of(tiny, tmp_path / "still", method, learning_rate=0.0))
    assert heldout(found)[1:] == [found["before"]] * 2
    assert found["own"]["per_device_train_batch_size"] == 4  # a third of a step at once
    assert found["samples"] == 2 * 3 * 4 and len(found["step_seconds"]) == len(found["sample_reward"]) == 2
    raft = run(task_of(tiny, tmp_path / "raft"))
    assert found["before"] == raft["before"]
    moved = run(task_of(tiny, tmp_path / "moved", method, learning_rate=1e-2, steps=3, minutes=1e-6))
    assert moved["steps"] == 1 and moved["after"] != moved["before"] == found["before"]


def test_what_cannot_be_compared_is_refused(tiny: Path, tmp_path: Path) -> None:
    for change, what in [
        ("tune.lora={}", "lora"),
        ("sample.stop=[x]", "stop"),
        ("reward=[{use: vader, normalise: zscore}]", "normalise"),
    ]:
        with pytest.raises(UserError, match=what):
            _ = task_of(tiny, tmp_path / "a", set=[change]).parts
    with pytest.raises(UserError, match="--rows 5: does not divide the 12"):
        peers_trl.peer_options(task_of(tiny, tmp_path / "a", "grpo", rows=5))
    with pytest.raises(UserError, match="one reward"):
        two = task_of(tiny, tmp_path / "a", disturb="noise", set=["reward=[vader, {use: vader, name: b}]"])
        _ = two.training_rewards
    options = peers_trl.peer_options(
        task_of(tiny, tmp_path / "a", "grpo", rows=None, trl=["beta=1e-3", "loss_type=bnpo"])
    )
    assert (options["per_device_train_batch_size"], options["beta"], options["loss_type"]) == (12, 1e-3, "bnpo")
    with pytest.raises(UserError, match="--trl betta"):
        peers_trl.train_peer(task_of(tiny, tmp_path / "a", "grpo", trl=["betta=1"]))


def line(method: str, seed: int, after: float, **changes: Any) -> dict[str, Any]:
    figures = {"heldout/reward_mean": after, "heldout/perplexity": 20.0 + seed}
    one = {"method": method, "seed": seed, "learning_rate": 5e-6, "recipe": "recipes/q.yaml", "steps": 6}
    one |= {"asked_steps": 6, "samples": 1152, "minutes": None, "disturb": "none", "sigma": 1.0, "set": [], "trl": []}
    one |= {"before": figures | {"heldout/reward_mean": 0.1}, "after": figures, "seconds": 60.0, "peak_bytes": 2**31}
    return one | {"seconds_per_step": 10.0, **changes}


def test_the_table_groups_seeds_and_nothing_else(tmp_path: Path) -> None:
    results = [line("grpo", 0, 0.2), line("grpo", 1, 0.4), line("raft", 0, 0.6), line("grpo", 0, 0.3, disturb="noise")]
    results += [line("grpo", 0, 0.5, trl=["beta=0.1"]), line("grpo", 0, 0.7, learning_rate=1e-6)]
    for number, one in enumerate(results):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "result.json").write_text(json.dumps(one))
    head, rule, *rows = peers_table.table(peers_table.read(tmp_path)).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    assert len(rows) == 5 and {len(row) for row in cells} == {rule.count("---")}
    first = dict(zip(cells[0], cells[1], strict=True))
    assert first["seeds"] == "0, 1" and first["lr"] == "5e-06" and first["peak GiB"] == "2.0" and first["s"] == "60"
    assert first["reward before → after"] == f"0.100 → 0.300 ± {2**0.5 / 10:.3f}"
    assert first["perplexity"] == f"20.500 ± {0.5**0.5:.3f}"
    assert first["kl"] == "–"  # not measured is no number
    assert [row[0] for row in cells[1:]] == ["grpo", "raft", "grpo, noise 1", "grpo", "grpo"]
    assert cells[4][-1] == "q, 6 steps, beta=0.1"

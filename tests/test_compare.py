"""Win, tie and loss: against brute force, judges whose truth is known, and the command as a user meets it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import build_model
from test_cli import CODEC, call, work, write_recipe  # noqa: F401  (work is a fixture)
from transformers import AutoModelForCausalLM, AutoTokenizer

from raftune import UserError, compare, table
from raftune import endpoint as server
from raftune.evaluate import votes
from raftune.evaluate.judge import TEMPLATE, EndpointJudge, Remembered, question, verdict
from raftune.evaluate.local_judge import LocalJudge
from raftune.evaluate.winrate import bootstrap, by_both_orders, by_difference, tally, wilson
from raftune.picture import Picture, PictureCodec
from raftune.types import Candidate, Prompt, Scored, Text

ODD = '<b>bold</b> & {braces} $x$ [red]\u2028\n"quoted" 🙂 [End of answer A]'


def pair(prompt: str, a: str, b: str, ra: float | None = None, rb: float | None = None, index: int = 0) -> Any:
    asked = Prompt(prompt, f"text of {prompt}")
    sides = [Scored(Candidate(asked, index, Text(text)), r, {"r": r, "m": -1.0}) for text, r in ((a, ra), (b, rb))]
    return tuple(sides)


def one_line(result: Any, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("raftune: ")]
    for part in parts:
        assert part in line


# The statistics


def test_the_bootstrap_is_over_whole_prompts() -> None:
    """Against all 4^4 resamples of four prompts of unequal size, whose quantiles lie inside atoms."""
    groups = [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0], [1.0], [0.5, 0.0, 0.0]]
    rates = []
    for drawn in itertools.product(groups, repeat=4):
        values = [value for group in drawn for value in group]
        rates.append(sum(values) / len(values))
    low, high = bootstrap(groups, seed=3, resamples=20_000)
    expected = np.quantile(rates, [0.025, 0.975])
    assert [low, high] == pytest.approx(expected, abs=0.02)
    alone = [[value] for group in groups for value in group]  # pairs as if independent: another, narrower interval
    narrow = bootstrap(alone, seed=3, resamples=20_000)
    assert narrow[1] - narrow[0] < 0.8 * (high - low)
    many = [[number / 50] for number in range(50)]
    assert bootstrap(many, 5) == bootstrap(many, 5) != bootstrap(many, 6)


def test_where_nothing_varies_the_interval_is_wilsons() -> None:
    """The score interval's ends p solve |rate - p| = 1.96·√(p(1-p)/n)."""
    for rate, count in ((1.0, 5), (0.5, 1), (0.2, 40)):
        for end in wilson(rate, count):
            assert abs(rate - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / count), abs=1e-6)
    total = tally([(f"p{i}", 1.0) for i in range(10) for _ in range(3)])
    assert total is not None
    assert total.interval == wilson(1.0, 10)  # ten prompts, not thirty pairs
    assert tally([]) is None


def test_a_tally_counts() -> None:
    total = tally([("a", 1.0), ("a", 0.5), ("b", 0.0), ("c", 1.0)], seed=1)
    assert total is not None
    assert (total.win, total.tie, total.loss, total.pairs, total.prompts) == (2, 1, 1, 4, 3)
    assert total.win_rate == 2.5 / 4
    assert 0 <= total.interval[0] < total.win_rate < total.interval[1] <= 1


def test_outcomes() -> None:
    assert [by_difference(a, 1.0, 0.5) for a in (1.6, 1.5, 1.0, 0.5, 0.4)] == [1.0, 0.5, 0.5, 0.5, 0.0]
    said = {(x, y): by_both_orders(x, y) for x in ("A", "B", "tie", None) for y in ("A", "B", "tie", None)}
    assert {orders for orders, outcome in said.items() if outcome == 1.0} == {("A", "B")}
    assert {orders for orders, outcome in said.items() if outcome == 0.0} == {("B", "A")}


# Judges


@dataclass
class Fake:
    """Answers what a function says, and counts what it was asked."""

    say: Callable[[str], str]
    name: str = "fake"
    asked: list[str] = field(default_factory=list)

    def ask(self, questions: Sequence[str], keep: Callable[[int, str], None]) -> None:
        for place in reversed(range(len(questions))):  # a server answers in any order
            self.asked.append(questions[place])
            keep(place, self.say(questions[place]))

    def cost(self, tokens: tuple[int, int]) -> None:
        raise AssertionError(f"{tokens}: it counted none")


def answers_in(text: str) -> tuple[str, str]:
    (found,) = re.findall(
        r"\[Answer A\]\n(.*)\n\[End of answer A\]\n\n\[Answer B\]\n(.*)\n\[End of answer B\]", text, re.S
    )
    return found


def perfect(text: str) -> str:
    """The longer answer is the truth; equal lengths tie."""
    a, b = map(len, answers_in(text))
    return "tie" if a == b else "A" if a > b else " B.\n"


PAIRS = [pair("p0", "long long", "short"), pair("p1", "x", ODD), pair("p2", "same", "size"), pair("p3", "eq", "eq")]


def test_a_judge_that_loves_a_place_decides_nothing(tmp_path: Path) -> None:
    for place in "AB":
        found = compare.by_judge(PAIRS, Fake(lambda _, place=place: place), tmp_path / place)
        assert set(found.outcomes) == {0.5}
        assert found.counts == {"unparsed": 0, "orders_disagree": 3, "same_text": 1}


def test_a_perfect_judge_recovers_the_truth_and_is_asked_once(tmp_path: Path) -> None:
    judge = Fake(perfect)
    found = compare.by_judge(PAIRS, judge, tmp_path)
    assert found.outcomes == [1.0, 0.0, 0.5, 0.5]
    assert len(judge.asked) == 6  # both orders, and nothing about equal texts
    assert sum(ODD in text for text in judge.asked) == 2  # odd text passes through as it is
    again = Fake(perfect)
    assert compare.by_judge(PAIRS, again, tmp_path).outcomes == found.outcomes
    assert again.asked == []
    other = Fake(perfect, "another judge")
    compare.by_judge(PAIRS, other, tmp_path)
    assert len(other.asked) == 6


def test_what_was_said_before_a_crash_is_kept(tmp_path: Path) -> None:
    def breaks(text: str) -> str:
        if "text of p0" in text:
            raise RuntimeError("the server is gone")
        return perfect(text)

    with pytest.raises(RuntimeError):
        compare.by_judge(PAIRS, Fake(breaks), tmp_path)
    with (tmp_path / compare.VERDICTS).open("a") as lines:
        lines.write('{"key": "ha')  # and the process was killed within a line
    judge = Fake(perfect)
    assert compare.by_judge(PAIRS, judge, tmp_path).outcomes == [1.0, 0.0, 0.5, 0.5]
    assert len(judge.asked) == 2
    quiet = Fake(perfect)
    compare.by_judge(PAIRS, quiet, tmp_path)
    assert quiet.asked == []


def test_verdicts_are_read_strictly(tmp_path: Path) -> None:
    assert [verdict(said) for said in ("A", " B.\n", "tie", "Tie")] == ["A", "B", "tie", "tie"]
    for said in ("", "a", "AB", "Answer A", "A, since B is short", "A\nB", "TIE!", "**A**"):
        assert verdict(said) is None
    found = compare.by_judge(
        PAIRS, Fake(lambda text: "I prefer A" if "text of p0" in text else perfect(text)), tmp_path
    )
    assert found.outcomes == [0.5, 0.0, 0.5, 0.5]
    assert found.counts["unparsed"] == 2


def test_a_question_holds_the_prompt_and_both_answers() -> None:
    chat = Prompt("c", ({"role": "system", "content": "Be {kind}."}, {"role": "user", "content": ODD}))
    text = question(chat, "{first}", "{prompt}")
    assert answers_in(text) == ("{first}", "{prompt}")
    assert f"system: Be {{kind}}.\nuser: {ODD}" in text
    assert TEMPLATE.endswith("Verdict:")


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> type:
    """The client of OpenAI-compatible servers with a perfect judge in place of the network; a token a word."""

    @dataclass(frozen=True)
    class Answered(server.Endpoint):
        def ask(self, requests: Sequence[Any], keep: Callable[[int, Any], None] = lambda *_: None) -> list[Any]:
            for place, request in enumerate(requests):
                assert (request.temperature, request.n) == (0.0, 1)
                (message,) = request.messages
                assert message["role"] == "user"
                text = message["content"]
                keep(place, server.Answer((perfect(text),), ("stop",), len(text.split()), 1))
            return []

    monkeypatch.setattr(server, "Endpoint", Answered)
    return Answered


def test_a_server_judges(endpoint: type, tmp_path: Path) -> None:
    judge = EndpointJudge(endpoint("judge-1", "http://here/v1"))
    assert compare.by_judge(PAIRS, judge, tmp_path).outcomes == [1.0, 0.0, 0.5, 0.5]
    assert Remembered(EndpointJudge(endpoint("judge-2")), tmp_path / "x").judge.name == "openai judge-2"


def test_a_judge_tells_what_it_took(endpoint: type, tmp_path: Path) -> None:
    """Also what was asked for in an earlier session, which costs nothing again."""
    asked = [question(pair[0].candidate.prompt, *order) for pair in PAIRS[:3] for order in both_orders(pair)]
    words = sum(len(text.split()) for text in asked)
    judge = EndpointJudge(endpoint("judge", price=server.Price(2.0, 30.0)))
    compare.by_judge(PAIRS[:1], judge, tmp_path)
    for _ in range(2):
        counts = compare.by_judge(PAIRS, judge, tmp_path).counts
        assert (counts["prompt_tokens"], counts["completion_tokens"]) == (words, 6)
        assert counts["cost"] == pytest.approx((2 * words + 30 * 6) / 1e6)
    assert "cost" not in compare.by_judge(PAIRS, EndpointJudge(endpoint("judge")), tmp_path).counts
    (tmp_path / "old").mkdir()
    lines = [json.loads(line) for line in (tmp_path / compare.VERDICTS).read_text().splitlines()]
    del lines[0]["tokens"]  # a file of an earlier version, or of a server that does not count
    (tmp_path / "old" / compare.VERDICTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "prompt_tokens" not in compare.by_judge(PAIRS, judge, tmp_path / "old").counts


def both_orders(pair: tuple[Scored, Scored]) -> list[tuple[str, str]]:
    a, b = (str(one.candidate.output) for one in pair)
    return [(a, b), (b, a)]


@pytest.mark.parametrize("chat", [True, False])
def test_a_local_judge_says_what_its_model_finds_likelier(chat: bool, tmp_path: Path) -> None:
    """Against the next-token probabilities of the library: one byte is one token."""
    model_folder = build_model(tmp_path / "judge", seed=1, scale=6.0, max_position_embeddings=1500)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    if not chat:
        tokenizer.chat_template = None
        (model_folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    texts = [f"{word} {word}?" for word in ("one", "film", "Prompt", "what", "zz", "0", "the end", "Q", "or", "why")]
    expected = []
    for text in texts:
        ids = tokenizer(text if chat else text + " ")["input_ids"]
        if chat:
            message = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1]
        a, b = (logits[tokenizer.convert_tokens_to_ids(word)].item() for word in "AB")
        expected.append("A" if a > b else "B")
    said: dict[int, str] = {}
    LocalJudge(str(model_folder)).ask([*texts, "x" * 2000], said.__setitem__)
    assert [said[place] for place in range(len(texts))] == expected
    assert set(expected) == {"A", "B"}  # else the test tells nothing
    assert said[len(texts)] == ""  # longer than the model's context: no verdict, and it is counted


# People


def test_people_see_no_names_and_their_votes_come_back(tmp_path: Path) -> None:
    pairs = [pair(f"p{i}", f"a{i} {ODD}", f"b{i}") for i in range(40)]
    votes.write(tmp_path, pairs, seed=1)
    shown = [json.loads(line) for line in (tmp_path / votes.PAIRS).read_bytes().decode().split("\n") if line]
    assert {frozenset((row["first"], row["second"])) for row in shown} == {
        frozenset(str(one.candidate.output) for one in two) for two in pairs
    }
    a_first = sum(row["first"].startswith("a") for row in shown)
    assert 8 < a_first < 32
    assert all(row.keys() == {"id", "prompt", "kind", "first", "second"} for row in shown)
    # Even pairs: two of three raters find A better; odd ones: one for each side; p0 has no vote, p2 a mere half
    lines = []
    for row in shown:
        number = int(row["prompt"].removeprefix("text of p"))
        mine, other = ("first", "second") if row["first"].startswith("a") else ("second", "first")
        cast = [(mine, "x"), (other, "y")] if number % 2 else [(mine, "x"), (other, "y"), (other, "z"), (mine, "z")]
        cast = {0: [], 2: [(mine, None), ("tie", None)]}.get(number, cast)
        lines += [{"id": row["id"], "vote": vote, **({"rater": rater} if rater else {})} for vote, rater in cast]
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    outcomes, counts = votes.read(tmp_path / "votes.jsonl", tmp_path, pairs)
    assert outcomes == [None, 0.5, 0.5, *(0.5 if i % 2 else 1.0 for i in range(3, 40))]
    assert counts.pop("agreement") < 0  # nobody agrees, less than chance would
    assert counts == {"votes": 18 * 3 + 20 * 2 + 2, "several_raters": 39, "raters_agree": 0}


def test_what_nobody_can_judge_is_no_pair(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Equal outputs and pictures that are gone are left out; the votes on the others are read back all the same."""
    pairs = [pair(f"p{i}", f"a{i}", f"a{i}" if i % 2 else f"b{i}") for i in range(6)]
    assert votes.write(tmp_path / "texts", pairs) == 3
    rows = [json.loads(line) for line in (tmp_path / "texts" / votes.PAIRS).read_text().splitlines()]
    mine = [{"id": one["id"], "vote": "first" if one["first"].startswith("a") else "second"} for one in rows]
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, mine)))
    assert votes.read(tmp_path / "votes.jsonl", tmp_path / "texts", pairs)[0] == [1, None, 1, None, 1, None]
    with pytest.raises(UserError, match="is of another comparison"):
        votes.read(tmp_path / "votes.jsonl", tmp_path / "texts", pairs[1:])
    with pytest.raises(UserError, match="nothing is left to judge"):
        votes.write(tmp_path / "none", pairs[1::2])
    assert not (tmp_path / "none").exists()
    there, also = (Picture.of(PIL.Image.new("RGB", (4, 4), colour)) for colour in ("red", "blue"))
    gone = Picture("0" * 64, 4, 4, path=tmp_path / "gone.png")
    drawn = [Scored(Candidate(Prompt("p", "a seven"), at, one), None) for at, one in enumerate((there, also, gone))]
    assert votes.write(tmp_path / "pictures", [(drawn[0], drawn[1]), (drawn[0], drawn[2])]) == 1
    assert "gone.png: cannot be read" in caplog.text and "its pair is left out" in caplog.text


def test_pictures_are_copied_under_names_that_tell_nothing(tmp_path: Path) -> None:
    asked = Prompt("p", "a red seven")
    both = [Picture.of(PIL.Image.new("RGB", (4, 4), colour)) for colour in ("red", "blue")]
    two = tuple(Scored(Candidate(asked, 0, one), None) for one in both)
    votes.write(tmp_path, [(two[0], two[1])])
    row = json.loads((tmp_path / votes.PAIRS).read_text())
    assert row["kind"] == "picture"
    assert {(tmp_path / row[side]).read_bytes() for side in ("first", "second")} == {one.png for one in both}


# The command


@pytest.fixture
def runs(work: Path, tiny: Path) -> tuple[Path, Path]:  # noqa: F811
    """A run of two rounds, and its copy as another one."""
    recipe = write_recipe(work, tiny, evaluate={"k": 4, "monitor": {"use": "vader", "name": "mood"}})
    made = call("run", recipe, "--out", work / "a", "--set", "sample.shard=8")
    assert made.exit_code == 0, made.output
    shutil.copytree(work / "a", work / "b", symlinks=True, ignore=shutil.ignore_patterns("policy"))
    with (work / "b" / "rounds" / "0001" / "metrics.json").open("r+") as file:
        row = json.load(file)
        file.seek(0)
        json.dump({**row, "heldout/reward_mean": -1e6}, file)  # other figures: another run
        file.truncate()
    return work / "a", work / "b"


def held(run: Path, number: int) -> list[Scored]:
    return table.read_scored(run / "rounds" / f"{number:04d}" / "heldout.parquet", CODEC)


def test_two_runs_and_a_run_with_its_start(runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = runs
    out = tmp_path / "out"
    result = call("compare", a, b, "--round-a", 1, "--round-b", 2, "--out", out)
    assert result.exit_code == 0, result.output
    told = json.loads((out / "compare.json").read_text())
    rewards = list(zip((s.reward for s in held(a, 1)), (s.reward for s in held(b, 2)), strict=True))
    assert (told["win"], told["tie"], told["loss"]) == tuple(
        sum(rule(x, y) for x, y in rewards) for rule in (lambda x, y: x > y, lambda x, y: x == y, lambda x, y: x < y)
    )
    assert (told["pairs"], told["prompts"], told["unpaired"], told["unscored"]) == (24, 6, 0, 0)
    metrics = json.loads((a / "rounds" / "0001" / "metrics.json").read_text())
    assert told["a"]["figures"]["perplexity"] == metrics["heldout/perplexity"]
    assert told["a"]["best_of_n"]["4"] == pytest.approx(metrics["heldout/best_of_4"])
    assert list(told["a"]["best_of_n"]) == ["1", "2", "4"]
    assert told["interval"][0] <= told["win_rate"] <= told["interval"][1]
    assert "win rate of A" in result.output
    assert "best of 4" in result.output
    with PIL.Image.open(out / "compare.png") as drawn:
        assert drawn.width > 800  # two panels
    started = call("compare", a, "--initial", "--round-a", 1, "--by", "monitor:mood", "--out", tmp_path / "start")
    assert started.exit_code == 0, started.output
    told = json.loads((tmp_path / "start" / "compare.json").read_text())
    moods = [(x.parts["mood"], y.parts["mood"]) for x, y in zip(held(a, 1), held(a, 0), strict=True)]
    assert told["win"] == sum(x > y for x, y in moods)
    assert told["b"]["round"] == 0
    tables = [path / "rounds" / number / "heldout.parquet" for path, number in ((a, "0001"), (b, "0002"))]
    by_length = call("compare", *tables, "--by", f"{a.parent / 'my_rewards.py'}:vowels", "--out", tmp_path / "tables")
    assert by_length.exit_code == 0, by_length.output
    again = json.loads((tmp_path / "tables" / "compare.json").read_text())
    assert (again["a"]["round"], again["pairs"]) == (None, 24)
    assert again["win"] == sum(x > y for x, y in rewards)  # the recipe's own reward, computed anew


def test_holes_are_counted_and_the_curves_stay_about_the_same_prompts(tmp_path: Path) -> None:
    pairs = [pair(p, "x", "y", ra, rb, i) for p, i, ra, rb in (
        ("full", 0, 1.0, 0.0), ("full", 1, 2.0, 2.5), ("hole", 0, 9.0, 9.0), ("hole", 1, None, 9.0))]  # fmt: skip
    found = compare.by_reward(pairs, "reward", margin=0.5)
    assert found.outcomes == [1.0, 0.5, 0.5, None]
    for place, name in enumerate("ab"):
        table.write_scored(tmp_path / f"{name}.parquet", [two[place] for two in pairs], CODEC)
    extra = [*(two[1] for two in pairs), pair("more", "x", "y", 0.0, 0.0)[1]]
    table.write_scored(tmp_path / "b.parquet", extra, CODEC)
    out = tmp_path / "out"
    result = call("compare", tmp_path / "a.parquet", tmp_path / "b.parquet", "--margin", 0.5, "--out", out)
    assert result.exit_code == 0, result.output
    told = json.loads((out / "compare.json").read_text())
    assert (told["win"], told["tie"], told["loss"], told["unscored"], told["unpaired"]) == (1, 2, 0, 1, 1)
    assert told["a"]["best_of_n"] == {"1": 1.5, "2": 2.0}
    assert told["b"]["best_of_n"] == {"1": 1.25, "2": 2.5}


def test_lengths_show_a_love_of_length(tmp_path: Path) -> None:
    pairs = [pair("p0", "one two three", "one", 1.0, 0.0), pair("p1", "one two", "one two three four", 0.0, 1.0)]
    pairs += [pair("p2", "one", "one two", 1.0, 0.0), pair("p3", "one two", "one", 0.0, 0.0)]
    for place, name in enumerate("ab"):
        table.write_scored(tmp_path / f"{name}.parquet", [two[place] for two in pairs], CODEC)
    assert call("compare", tmp_path / "a.parquet", tmp_path / "b.parquet", "--out", tmp_path / "o").exit_code == 0
    told = json.loads((tmp_path / "o" / "compare.json").read_text())
    assert told["words_mean"] == {"a": 2.0, "b": 2.0}
    assert told["longer_won"] == pytest.approx(2 / 3)


def test_votes_and_judges_from_the_command_line(tmp_path: Path, endpoint: type) -> None:
    for place, name in enumerate("ab"):
        table.write_scored(tmp_path / f"{name}.parquet", [two[place] for two in PAIRS], CODEC)
    a, b, out = tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "out"
    judged = call("compare", a, b, "--by", "judge", "--judge-endpoint", "m", "--judge-url", "http://x/v1",
                  "--judge-price", 2, 30, "--out", out)  # fmt: skip
    assert judged.exit_code == 0, judged.output
    assert "in the currency of its price" in " ".join(judged.output.split())
    told = json.loads((out / "compare.json").read_text())
    assert (told["win"], told["tie"], told["loss"]) == (1, 2, 1)
    asked = call("compare", a, b, "--by", "people", "--out", out)
    assert asked.exit_code == 0, asked.output
    shown = [json.loads(line) for line in (out / votes.PAIRS).read_bytes().decode().split("\n") if line]
    (tmp_path / "votes.jsonl").write_text("\n".join(json.dumps({"id": r["id"], "vote": "first"}) for r in shown))
    assert call("compare", a, b, "--by", tmp_path / "votes.jsonl", "--out", out).exit_code == 0
    told = json.loads((out / "compare.json").read_text())
    key = [json.loads(line) for line in (out / votes.KEY).read_text().splitlines()]
    assert told["win"] == sum(row["first"] == "a" for row in key)
    assert (told["votes"], told["without_vote"]) == (3, 1)  # one pair says the same twice
    one_line(call("compare", b, a, "--by", tmp_path / "votes.jsonl", "--out", out), "another comparison")
    (tmp_path / "votes.jsonl").write_text(json.dumps({"id": shown[0]["id"], "vote": "left"}))
    one_line(call("compare", a, b, "--by", tmp_path / "votes.jsonl", "--out", out), "line 1", "'left'")
    (tmp_path / "votes.jsonl").write_text(json.dumps({"id": "nobody", "vote": "tie"}))
    one_line(call("compare", a, b, "--by", tmp_path / "votes.jsonl", "--out", out), "line 1", "nobody")


def test_bad_input_gets_one_line(tmp_path: Path, tiny: Path) -> None:
    for place, name in enumerate("ab"):
        table.write_scored(tmp_path / f"{name}.parquet", [two[place] for two in PAIRS], CODEC)
    other = [Scored(Candidate(Prompt("p0", "another text"), 0, Text("x")), 1.0, {})]
    table.write_scored(tmp_path / "other.parquet", other, CODEC)
    table.write_scored(tmp_path / "apart.parquet", [pair("q", "x", "y", 1.0, 1.0)[0]], CODEC)
    drawn = Candidate(Prompt("p0", "text of p0"), 0, Picture.of(PIL.Image.new("RGB", (4, 4))))
    for name in ("seen", "seen2"):
        table.write_scored(tmp_path / f"{name}.parquet", [Scored(drawn, 1.0)], PictureCodec())
    (tmp_path / "run" / "rounds").mkdir(parents=True)
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "fingerprint").write_text("{}")
    a, b, out = (tmp_path / name for name in ("a.parquet", "b.parquet", "out"))

    def fails(*arguments: object, told: Sequence[str], out: Path = out) -> None:
        one_line(call("compare", *arguments, "--out", out), *told)

    fails(a, told=["give two"])
    fails(a, b, "--initial", told=["--initial stands for B"])
    fails(a, "--initial", told=["has no rounds"])
    fails(a, b, "--round-a", 1, told=["has no rounds"])
    fails(a, tmp_path / "none.parquet", told=["no such file"])
    fails(a, tmp_path, told=["holds no rounds"])
    fails(tmp_path / "run", b, told=["no round was evaluated"])
    fails(a, tmp_path / "other.parquet", told=["'p0'", "not the same text"])
    fails(a, tmp_path / "apart.parquet", told=["in common"])
    fails(a, tmp_path / "seen.parquet", told=["text", "image"])
    fails(a, b, told=["no pair has a reward"])
    fails(a, b, "--by", "monitor:mood", told=["monitor:mood", "r, m"])
    fails(a, b, "--by", "nonsense", told=["nonsense"])
    fails(a, b, "--by", "judge", told=["--judge-model"])
    fails(a, b, "--by", "judge", "--judge-model", tiny, "--judge-url", "http://x", told=["--judge-url"])
    fails(a, b, "--judge-model", tiny, told=["--by judge"])
    fails(a, b, "--by", tmp_path / "votes.jsonl", told=["pairs.key.jsonl", "--by people"])
    fails(a, b, told=["is a run's directory"], out=tmp_path / "held")
    fails(a, b, told=["cannot be a directory"], out=a)
    pictures = [tmp_path / "seen.parquet", tmp_path / "seen2.parquet"]
    fails(*pictures, "--by", "judge", "--judge-model", tiny, told=["reads texts only"])
    assert call("compare", *pictures, "--out", out).exit_code == 0
    assert "words_mean" not in json.loads((out / "compare.json").read_text())

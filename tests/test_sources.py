"""Candidates from elsewhere than the policy: pools, teachers, black boxes, their mixture, and recipes of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import build_model, build_tokenizer, prompts_of
from test_cli import CODEC, call, work, write_recipe
from test_endpoint import Server, serve

from raftune import pick, table
from raftune.errors import UserError
from raftune.pool import read_pool
from raftune.provenance import by_source, in_words
from raftune.recipe import load, validated
from raftune.sample.fixed import Fixed
from raftune.sample.mixture import Member, Mixture
from raftune.sample.pool import PoolSampler
from raftune.sample.text import TextSampler
from raftune.sampling import TextSampleConfig
from raftune.tokens import output_ids
from raftune.types import Candidate, Prompt, Scored, Text

__all__ = ["serve", "work"]
CHAT = [{"role": "user", "content": "Q"}]


def pool_of(folder: Path, *rows: dict[str, Any]) -> PoolSampler:
    (folder / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return PoolSampler(tuple(read_pool(str(folder / "pool.jsonl"))), "pool.jsonl", "people")


def texts(candidates: list[Candidate]) -> list[str]:
    return [one.output.text for one in candidates]


def test_pool_rows_find_their_prompts_by_id_or_content(tmp_path: Path) -> None:
    pool = pool_of(
        tmp_path,
        {"prompt_id": "p0", "output": "by id"},
        {"prompt": "first", "completion": "by content"},
        {"prompt": "second", "answer": "of the second", "source": "ann"},
        {"prompt": CHAT, "completion": [{"role": "assistant", "content": "of the chat"}]},
        {"prompt": "first", "output": " "},
    )
    prompts = [*prompts_of("first", "second"), Prompt("c", tuple(CHAT)), Prompt("lonely", "no answer")]
    drawn = pool.sample("policy", prompts, None, (0,))
    assert texts(drawn) == ["by id", "by content", "of the second", "of the chat"]
    assert [one.index for one in drawn] == [0, 1, 0, 0]
    assert [one.source for one in drawn] == ["people", "people", "ann", "people"]
    assert all(one.output.token_ids is None for one in drawn)


def test_more_answers_than_k_are_drawn_by_address(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, *({"prompt_id": "p0", "output": f"{i}"} for i in range(8)))
    prompts = prompts_of("first")
    rounds = [texts(pool.sample("policy", prompts, 3, (0, number))) for number in range(20)]
    assert all(len(set(one)) == 3 and one == sorted(one) for one in rounds)
    assert len({text for one in rounds for text in one}) == 8
    assert rounds == [texts(pool.sample("policy", prompts, 3, (0, number))) for number in range(20)]


def test_what_does_not_match_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raftune")
    pool = pool_of(
        tmp_path,
        {"prompt_id": "p0", "output": "x"},
        {"prompt": "What is this?", "output": "x"},
        {"prompt_id": "h", "output": "x"},
        {"prompt_id": "p0", "output": ""},
    )
    pool.check(prompts_of("first", "second"), [Prompt("h", "held out")])
    said = [record.getMessage() for record in caplog.records]
    assert "pool pool.jsonl: 1 of 4 rows match no prompt, e.g. line 2 'What is this?'" in said
    assert "pool pool.jsonl: 1 of 4 rows have an empty answer and are left out, e.g. line 4 'p0'" in said
    assert "pool pool.jsonl: 1 rows are of held-out prompts and are not used" in said
    assert "pool pool.jsonl: 1 of 2 training prompts have no answer, e.g. 'p1'" in said
    with pytest.raises(UserError, match=r"none of its 4 rows matches a training prompt, e.g. line 1 'p0'"):
        pool.check([Prompt("z", "other")], [])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "line 1: no column 'output' or 'completion' or 'answer' or 'response'; it has prompt"),
        ({"output": "a"}, "line 1: no column 'prompt' or 'prompt_id'; it has output"),
        ({"prompt": "a", "output": None}, "line 1: output is a text or one message, not NoneType"),
        ({"prompt": 3, "output": "a"}, "line 1: a prompt is a text or a list"),
    ],
)
def test_faulty_pool_rows_are_named(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        pool_of(tmp_path, row)


def test_our_own_tables_are_pools_and_their_tokens_are_checked(tmp_path: Path, tiny: Path) -> None:
    prompts = [Prompt("c", ({"role": "user", "content": "hello"},), {"label": 3}), *prompts_of("first")]
    drawn = TextSampler(8).sample(tiny, prompts, 2, (0,))
    table.write_candidates(tmp_path / "candidates.parquet", drawn, CODEC)
    rows = tuple(read_pool(str(tmp_path / "candidates.parquet")))
    again = PoolSampler(rows).sample(tiny, prompts, None, (0,))
    assert [one.output.token_ids for one in again] == [one.output.token_ids for one in drawn]
    assert all(one.logprob is None and one.output.token_logprobs is None for one in again)
    assert rows[0].prompt == prompts[0]
    shifted = tuple(
        replace(row, output=replace(row.output, token_ids=tuple((i + 1) % 256 for i in row.output.token_ids or ())))
        for row in rows
    )
    others = PoolSampler(shifted).sample(tiny, prompts, None, (0,))
    assert all(one.output.token_ids is None for one in others if one.output.text)
    assert texts(others) == texts(again)


def other_tokens(folder: Path) -> Path:
    """The same model with a tokenizer whose ids mean something else."""
    build_model(folder, seed=1)
    tokenizer = build_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {char: 255 - place for char, place in vocabulary.items()}
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(state))
    return folder


def test_a_teacher_draws_whatever_the_policy(tiny: Path, tmp_path: Path) -> None:
    teacher = build_model(tmp_path / "teacher", seed=1)
    prompts = prompts_of("one", "two")
    drawn = Fixed(TextSampler(8), teacher).sample(tiny, prompts, 2, (0,))
    truth = TextSampler(8).sample(teacher, prompts, 2, (0,))
    assert texts(drawn) == texts(truth) != texts(TextSampler(8).sample(tiny, prompts, 2, (0,)))
    assert [one.output.token_ids for one in drawn] == [one.output.token_ids for one in truth]
    assert all(one.logprob is None and one.output.token_logprobs is None for one in drawn)
    foreign = other_tokens(tmp_path / "foreign")
    drawn = Fixed(TextSampler(8), foreign).sample(tiny, prompts, 2, (0,))
    assert texts(drawn) == texts(TextSampler(8).sample(foreign, prompts, 2, (0,)))
    assert all(one.output.token_ids is None for one in drawn)
    tokenizer = build_tokenizer()
    one = replace(drawn[0].output, text="a b", finish_reason="length")
    assert tokenizer.decode(output_ids(tokenizer, one)) == "a b"


def test_a_mixture_numbers_through_and_leaves_the_policys_draws_alone(tiny: Path, tmp_path: Path) -> None:
    prompts = prompts_of("one", "two")
    people = pool_of(tmp_path, {"prompt_id": "p1", "output": "x"}, {"prompt_id": "p1", "output": "y", "source": "ann"})
    members = (Member("people", people, None, tells=True), Member("student", TextSampler(8), 2, True))
    mixture = Mixture(members)
    drawn = mixture.sample(tiny, prompts, 3, (0, 1))
    assert [(one.prompt.id, one.index, one.source) for one in drawn] == [
        *(("p0", 0, "student"), ("p0", 1, "student")),
        *(("p1", 0, "people"), ("p1", 1, "ann"), ("p1", 2, "student"), ("p1", 3, "student")),
    ]
    alone = TextSampler(8).sample(tiny, prompts, 2, (0, 1))
    assert [one.output for one in drawn if one.source == "student"] == [one.output for one in alone]
    assert mixture.covers(prompts[0])
    assert not Mixture(members[:1]).covers(prompts[0])


def test_who_won_how_often() -> None:
    def one(index: int, source: str, reward: float | None) -> Scored:
        return Scored(Candidate(Prompt("p", "p"), index, Text("x"), source), reward)

    scored = [one(0, "policy", 1.0), one(1, "teacher", 2.0), one(2, "teacher", 4.0), one(3, "mute", None)]
    figures = by_source(scored, scored[:3])
    assert figures == {
        "chosen/source/policy": pytest.approx(1 / 3),
        "chosen/source/teacher": pytest.approx(2 / 3),
        "chosen/source/mute": 0,
        "sample/source/policy/reward_mean": 1.0,
        "sample/source/teacher/reward_mean": 3.0,
    }
    assert in_words(figures) == "teacher 67%, policy 33%, mute 0%"
    assert by_source(scored[1:3], scored[1:3]) == {}
    assert in_words({}) is None


GOOD = "model: m\nprompts: p.jsonl\nreward: vader\nsample: {sources: %s}\n"


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ("{gpt: {use: endpoint, k: 1, model: m, retries: -1}}", "sample.sources.gpt.retries: should be greater than"),
        (
            "{gpt: {use: endpoint, k: 1, model: m, retrys: 1}}",
            "sources.gpt.retrys: no such key; did you mean 'retries'",
        ),
        ("{gpt: {use: endpoint, k: 1}}", "sample.sources.gpt.model: is missing"),
        (
            "{gpt: {use: endpoint, k: 1, model: m, price: {inptu: 1, output: 1}}}",
            "gpt.price.inptu: no such key; did you",
        ),
        ("{gpt: {use: endpoint, k: 1, model: m, url: localhost}}", "sample.sources.gpt.url: "),
        ("{endpoint: {use: endpoint, k: 0, model: m}}", "sample.sources.endpoint.k: should be greater than"),
        ("{a: {use: modle, k: 1}}", "sample.sources.a.use: 'modle' is unknown; use policy, model, endpoint, pool"),
        ("{a: {k: 1}}", "sample.sources.a.use: is missing; use policy"),
        ("{a/b: {use: policy, k: 1}}", "sample.sources.a/b: "),
        ("{a: {use: policy, k: 1}, b: {use: policy, k: 1}}", "sample.sources: the policy can be a source once"),
        ("{a: {use: policy, k: 3}}, k: 4", "sample.k: is the sum of its sources, 3; leave it out, got 4"),
        ("{}", "sample.sources: "),
        (
            "{a: {use: pool, path: a}}}\nmodality: image\ntune: {steps: 1",
            "sample.sources: pictures come from the policy",
        ),
    ],
)
def test_faults_of_sources_name_the_key(sources: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(GOOD % sources)
    with pytest.raises(UserError) as error:
        load(tmp_path / "r.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def config(sources: dict[str, Any], **options: Any) -> TextSampleConfig:
    return validated(TextSampleConfig, {"sources": sources, **options}, "sample")


def test_k_is_the_sum_and_sources_take_over_what_the_section_says(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "output": "b"}')
    mixed = config(
        {
            "policy": {"use": "policy", "k": 4},
            "teacher": {"use": "model", "k": 2, "model": str(tiny), "sample": {"temperature": 0.7}},
            "gpt": {"use": "endpoint", "k": 1, "model": "m", "price": {"input": 1, "output": 2}},
            "people": {"use": "pool", "path": "a.jsonl"},
        },
        max_new_tokens=9,
        temperature=0.9,
    )
    assert mixed.k == 7
    assert config({"a": {"use": "pool", "path": "a"}}).k == 1
    assert validated(TextSampleConfig, {}, "sample").k == 8
    policy, teacher, gpt, people = pick.sources(mixed, tmp_path, tmp_path / "kept").members  # type: ignore[attr-defined]
    assert policy.sampler == TextSampler(9, 0.9)
    assert policy.own
    assert teacher.sampler == Fixed(TextSampler(9, 0.7), str(tiny))
    assert (gpt.sampler.max_new_tokens, gpt.sampler.temperature) == (9, 0.9)
    assert gpt.sampler.folder == tmp_path / "kept"
    assert people.k is None
    assert [one.k for one in mixed.trial(2).sources.values()] == [2, 2, 1, 2]  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"sample.sources.t.sample.temprature: no such key; did you mean"):
        pick.sources(config({"t": {"use": "model", "k": 1, "model": str(tiny), "sample": {"temprature": 1}}}))
    with pytest.raises(UserError, match=r"sample.sources.t.sample.k: does nothing there"):
        pick.sources(config({"t": {"use": "model", "k": 1, "model": str(tiny), "sample": {"k": 1}}}))


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_four_sources_and_its_provenance(
    work: Path, tiny: Path, tmp_path: Path, serve: Callable[..., Server]
) -> None:
    server = serve()
    (work / "people.jsonl").write_text(
        "\n".join(json.dumps({"prompt_id": f"p{i}", "output": "aeiou" * 4, "source": "ann"}) for i in range(0, 24, 2))
    )
    sources = {
        "policy": {"use": "policy", "k": 2},
        "teacher": {"use": "model", "k": 1, "model": str(build_model(tmp_path / "teacher", seed=1))},
        "gpt": {"use": "endpoint", "k": 2, "model": "m", "url": server.url, "price": {"input": 1, "output": 10}},
        "people": {"use": "pool", "path": "people.jsonl"},
    }
    sample = {"prompts_per_round": 8, "max_new_tokens": 12, "shard": 4, "sources": sources}
    recipe = write_recipe(work, tiny, sample=sample, rounds=2)
    dry = call("run", recipe, "--dry-run")
    assert dry.exit_code == 0, dry.output
    asked = len(server.bodies)
    result = call("run", recipe, "--out", work / "run")
    assert result.exit_code == 0, result.output
    assert "8 prompts × 2 gpt + all people + 2 policy + 1 teacher" in result.output
    assert "chosen from " in result.output
    assert len(server.bodies) - asked == 2 * 8 * 2
    for row in rows_of(work / "run")[1:]:
        scored = table.read_scored(work / "run" / "rounds" / f"{row['round']:04d}" / "scored.parquet", CODEC)
        chosen = table.read_scored(work / "run" / "rounds" / f"{row['round']:04d}" / "chosen.parquet", CODEC)
        assert {one.candidate.source for one in scored} == {"policy", "teacher", "gpt", "ann"}
        for name in ("policy", "ann"):
            share = sum(one.candidate.source == name for one in chosen) / len(chosen)
            assert row[f"chosen/source/{name}"] == share
        assert row["sample/source/ann/reward_mean"] == 20
        assert row["sample/gpt/prompt_tokens"] == 160
        assert row["sample/gpt/cost"] == pytest.approx((160 + 10 * 32) / 1e6)
        assert "sample/tokens_per_s" not in row
    held = table.read_scored(work / "run" / "rounds" / "0000" / "heldout.parquet", CODEC)
    assert {one.candidate.source for one in held} == {"policy"}
    slower = ("--set", "sample.sources.gpt.concurrency=1", "--set", "sample.sources.gpt.retries=9")
    assert call("run", recipe, "--out", work / "run", *slower).exit_code == 0
    other = call("run", recipe, "--out", work / "run", "--set", "sample.sources.gpt.model=n")
    assert other.exit_code == 2
    assert "sample.sources.gpt.model ('m' → 'n')" in other.output


def test_offline_ranks_and_tunes_on_a_pool_alone(work: Path, tiny: Path) -> None:
    answers = [{"prompt_id": f"p{i}", "output": "aei" * n} for i in range(12) for n in (1, 3, 2)]
    (work / "pool.jsonl").write_text("\n".join(map(json.dumps, answers)))
    sample = {"prompts_per_round": 5, "sources": {"people": {"use": "pool", "path": "pool.jsonl"}}}
    recipe = write_recipe(work, tiny, sample=sample, rounds=1)
    assert call("run", recipe, "--dry-run").exit_code == 0
    result = call("run", recipe, "--out", work / "run")
    assert result.exit_code == 0, result.output
    assert "unanswered" in result.output
    chosen = table.read_scored(work / "run" / "rounds" / "0001" / "chosen.parquet", CODEC)
    assert [one.candidate.output.text for one in chosen] == ["aei" * 3] * 5
    assert (work / "run" / "rounds" / "0001" / "policy" / "model.safetensors").exists()
    [before, after] = rows_of(work / "run")
    assert after["heldout/reward_mean"] != before["heldout/reward_mean"]
    assert "chosen/source/people" not in after
    with (work / "pool.jsonl").open("a") as file:
        file.write('\n{"prompt_id": "p0", "output": "late"}')
    changed = call("run", recipe, "--out", work / "run")
    assert changed.exit_code == 2
    assert "sample.sources.people.path sha256" in changed.output


def test_rows_of_a_pool_do_not_pass_for_another_source(tmp_path: Path) -> None:
    """An earlier run's candidates say that they are the policy's; they are not this policy's."""
    pool = pool_of(
        tmp_path,
        {"prompt_id": "p0", "output": "old", "source": "policy"},
        {"prompt_id": "p0", "output": "hers", "source": "ann"},
    )
    mixture = Mixture((Member("policy", pool, 1, own=True), Member("people", pool, None, tells=True)))
    drawn = mixture.sample("policy", prompts_of("first"), 3, (0,))
    assert [one.source for one in drawn] == ["policy", "people", "ann"]


def test_files_may_begin_with_a_mark_and_end_lines_as_windows_does(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"prompt_id": f"p{i}", "output": "é"}) + "\r\n" for i in range(2))
    (tmp_path / "pool.jsonl").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert [row.prompt_id for row in read_pool(str(tmp_path / "pool.jsonl"))] == ["p0", "p1"]


@pytest.mark.parametrize("column", ["prompt_id", "output", "source", "label"])
def test_half_a_surrogate_pair_is_named(column: str, tmp_path: Path) -> None:
    row = {"prompt_id": "p0", "output": "x", "source": "s", "label": "l"} | {column: "a\ud800"}
    with pytest.raises(UserError, match="line 1: half a surrogate pair"):
        pool_of(tmp_path, row)
    pool_of(tmp_path, {"prompt_id": "p0", "output": "\U0001f600"})  # a whole pair, as JSON writes it


def test_an_id_with_another_text_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt_id": "p0", "prompt": "first", "output": "x"}, {"prompt_id": "p1", "prompt": "hey", "output": "x"}]
    pool_of(tmp_path, *rows).check(prompts_of("first", "second"), [])
    assert "1 of 2 rows have the id of a training prompt and another text" in caplog.text
    assert "e.g. line 2 'hey'" in caplog.text

"""Ranking and selection against brute force, and the rules for ties and tails."""

from __future__ import annotations

import math
import random

import pytest
from conftest import scored
from hypothesis import given
from hypothesis import strategies as st

from raftune.errors import UserError
from raftune.rank import Above, Best, Floor, NothingChosen, Random, Top, choose, parse_rule, rank
from raftune.types import Scored

Pool = list[Scored]


def pool_of(rewards: list[tuple[str, float | None]]) -> Pool:
    counts: dict[str, int] = {}
    pool = []
    for prompt, reward in rewards:
        pool.append(scored(prompt, counts.setdefault(prompt, 0), reward))
        counts[prompt] += 1
    return pool


def keys(chosen: Pool) -> list[tuple[str, int]]:
    return [(one.candidate.prompt.id, one.candidate.index) for one in chosen]


rewards = st.one_of(st.none(), st.integers(-5, 5).map(float), st.floats(-1e3, 1e3))
pools = st.lists(st.tuples(st.sampled_from("abcd"), rewards), max_size=30).map(pool_of)


@given(pools, st.integers(1, 4))
def test_best_equals_brute_force(pool: Pool, n: int) -> None:
    wanted = []
    for one in pool:
        if one.reward is None:
            continue
        rivals = [r for r in pool if r.candidate.prompt.id == one.candidate.prompt.id and r.reward is not None]
        better = [r for r in rivals if (r.reward, -r.candidate.index) > (one.reward, -one.candidate.index)]
        if len(better) < n:
            wanted.append(one)
    assert sorted(keys(Best(n)(pool))) == sorted(keys(wanted))


@given(pools, st.floats(0.01, 1))
def test_top_equals_brute_force(pool: Pool, fraction: float) -> None:
    eligible = [one for one in pool if one.reward is not None]
    count = max(1, math.floor(len(eligible) * fraction + 1e-9)) if eligible else 0
    order = sorted(range(len(pool)), key=lambda i: (-(pool[i].reward if pool[i].reward is not None else -math.inf), i))
    wanted = {order[i] for i in range(count)}
    assert keys(Top(fraction)(pool)) == keys([one for i, one in enumerate(pool) if i in wanted])


@given(pools, st.floats(-10, 10))
def test_above_equals_brute_force(pool: Pool, floor: float) -> None:
    assert keys(Above(floor)(pool)) == keys([o for o in pool if o.reward is not None and o.reward >= floor])


@given(pools, st.integers(-5, 5).map(float), st.integers(1, 3))
def test_a_floor_leaves_the_rule_what_reaches_it(pool: Pool, floor: float, n: int) -> None:
    """The n best of each prompt, if they reach the floor; of a fraction, the fraction of those; at random, of those."""
    reach = [one for one in pool if one.reward is not None and one.reward >= floor]
    best = keys(Floor(Best(n), floor)(pool))
    assert sorted(best) == sorted(key for key in keys(Best(n)(pool)) if key in keys(reach))
    order = sorted(range(len(reach)), key=lambda i: (-(reach[i].reward or 0), i))
    share = max(1, math.floor(len(reach) * 0.3 + 1e-9)) if reach else 0
    wanted = [reach[i] for i in sorted(order[:share])]
    assert keys(Floor(Top(0.3), floor)(pool)) == keys(wanted)
    control = keys(Floor(Random(n), floor)(pool, (3,)))
    assert set(control) <= set(keys(reach))
    assert sorted(key[0] for key in control) == sorted(key[0] for key in best)
    if not reach:
        for rule in ("best", "top:0.3", "random"):
            with pytest.raises(NothingChosen, match="chose none"):
                choose(parse_rule(rule, floor=floor), pool)


@given(pools, st.integers(-20, 20), st.sampled_from(["best", "best:2", "top:0.3", "random", "random:2", "random:0.25"]))
def test_the_choice_is_invariant_to_positive_rescaling(pool: Pool, exponent: int, rule: str) -> None:
    """Powers of two, which are exact: any other factor could round two rewards into a tie of its own."""
    rescaled = [
        Scored(one.candidate, None if one.reward is None else one.reward * 2.0**exponent, one.parts) for one in pool
    ]
    parsed = parse_rule(rule)
    assert keys(parsed(pool, (0,))) == keys(parsed(rescaled, (0,)))


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_best_is_invariant_to_any_positive_factor(values: list[int], factor: float) -> None:
    pool = pool_of([("a", float(v)) for v in values])
    assert keys(Best()(pool)) == keys(Best()(pool_of([("a", v * factor) for v in values])))


@given(pools)
def test_random_is_the_matched_control(pool: Pool) -> None:
    """As many of each prompt as the best rule takes, and only what was scored."""
    for n in (1, 2):
        best, control = Best(n)(pool), Random(n)(pool, (3,))
        assert sorted(k[0] for k in keys(best)) == sorted(k[0] for k in keys(control))
        assert all(one.reward is not None for one in control)
    assert len(Random(None, 0.3)(pool, (3,))) == len(Top(0.3)(pool))


def test_random_does_not_look_at_the_reward() -> None:
    """Over many seeds each of four candidates is taken about as often: 4 binomials within five deviations."""
    pool = pool_of([("a", float(i)) for i in range(4)])
    taken = [Random()(pool, (seed,))[0].candidate.index for seed in range(2000)]
    assert all(abs(taken.count(i) - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75) for i in range(4))
    assert taken[:50] == [Random()(pool, (seed,))[0].candidate.index for seed in range(50)]


def test_ties_keep_sampling_order() -> None:
    pool = pool_of([("a", 1.0), ("a", 2.0), ("a", 2.0), ("b", 2.0)])
    assert keys(Best()(pool)) == [("a", 1), ("b", 0)]
    assert keys(Top(0.5)(pool)) == [("a", 1), ("a", 2)]
    assert [one.candidate.index for one in rank(pool)[0].scored] == [1, 2, 0]


def test_all_tied_prompts_give_their_first_or_nothing() -> None:
    pool = pool_of([("a", 1.0), ("a", 1.0), ("b", 0.0), ("b", 1.0), ("c", 5.0)])
    assert keys(Best()(pool)) == [("a", 0), ("b", 1), ("c", 0)]
    assert keys(Best(skip_tied=True)(pool)) == [("b", 1), ("c", 0)]
    assert [r.all_tied for r in rank(pool)] == [True, False, False]


def test_unscored_candidates_are_never_chosen_and_empty_prompts_give_nothing() -> None:
    pool = pool_of([("a", None), ("a", -9.0), ("b", None), ("b", None)])
    assert keys(Best()(pool)) == [("a", 1)]
    assert keys(Top(1.0)(pool)) == [("a", 1)]
    rankings = rank(pool)
    assert (len(rankings[1].scored), len(rankings[1].unscored)) == (0, 2)


def test_a_fraction_keeps_at_least_one() -> None:
    pool = pool_of([("a", float(i)) for i in range(5)])
    assert keys(Top(0.01)(pool)) == [("a", 4)]
    assert len(Top(0.6)(pool)) == 3  # 0.6 × 5 is 3, whatever floating point says


@pytest.mark.parametrize("pool", [[], pool_of([("a", None)])])
def test_nothing_chosen_is_an_error(pool: Pool) -> None:
    with pytest.raises(UserError, match="chose none"):
        choose(Best(), pool)
    with pytest.raises(UserError, match="chose none"):
        choose(Above(2.0), pool_of([("a", 1.0)]))


def test_infinite_rewards_never_get_as_far_as_ranking() -> None:
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match="finite"):
            scored("a", 0, value)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("best", Best()),
        ("best:3", Best(3)),
        ("top:0.1", Top(0.1)),
        ("above:-0.5", Above(-0.5)),
        ("random", Random()),
        ("random:2", Random(2)),
        ("random:0.1", Random(None, 0.1)),
    ],
)
def test_rules_by_name(text: str, rule: object) -> None:
    assert parse_rule(text) == rule


def test_a_floor_goes_around_any_rule() -> None:
    assert parse_rule("best:2", floor=0.5) == Floor(Best(2), 0.5)
    assert parse_rule("best", skip_tied=True, floor=-1) == Floor(Best(skip_tied=True), -1)
    assert parse_rule("top:0.1", floor=None) == Top(0.1)
    pool = pool_of([("a", 1.0), ("a", 1.0), ("a", 0.0), ("b", 1.0), ("b", 1.0), ("c", 0.0), ("c", 0.5)])
    # a's right answers are worth learning, as one was wrong; b's tell nothing; c has none
    assert keys(parse_rule("best", skip_tied=True, floor=1.0)(pool, (0,))) == [("a", 0)]


@pytest.mark.parametrize(
    "text", ["bset", "best:0", "best:x", "top", "top:0", "top:1.5", "above:inf", "above:nan", "random:2.0", "random:0"]
)
def test_wrong_rules_are_named(text: str) -> None:
    with pytest.raises(UserError, match=r"select\.rule"):
        parse_rule(text)


def test_order_of_prompts_does_not_matter_for_local_ranking() -> None:
    pool = pool_of([(p, float(v)) for p in "abc" for v in random.Random(0).sample(range(9), 4)])
    shuffled = random.Random(1).sample(pool, len(pool))
    in_order = sorted(shuffled, key=lambda one: one.candidate.index)
    assert sorted(keys(Best()(pool))) == sorted(keys(Best()(in_order)))

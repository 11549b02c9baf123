"""The benchmarks: ratios, bounds, when a target was reached, the choice of a rate, what is kept, the page."""

from __future__ import annotations

import itertools
import json
import math
import random
import runpy
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import aims  # noqa: E402
import page  # noqa: E402
import paired  # noqa: E402
import sessions  # noqa: E402
import time_to_reward  # noqa: E402
from ratios import Reached, Spread, ratios, reached, short, slower, spread  # noqa: E402


def test_ratios_are_taken_within_pairs() -> None:
    """What slows both sides of a pair alike moves no ratio, as it would the ratio of the medians."""
    ours, peer = [30.0, 10.0, 90.0], [10.0, 3.0, 30.0]
    assert ratios(ours, peer, smaller_is_better=False) == [3, 10 / 3, 3]
    assert ratios(peer, ours, smaller_is_better=True) == [3, 10 / 3, 3]
    assert spread(ratios(ours, peer, smaller_is_better=False)) == Spread(3, 3, 10 / 3)
    with pytest.raises(ValueError):
        ratios(ours, peer[:2], smaller_is_better=False)


def test_figures_have_three_digits() -> None:
    assert [short(one) for one in (1640.4, 0.5149, 12.0, 3.184, 0.0123)] == ["1,640", "0.515", "12", "3.18", "0.0123"]
    assert str(Spread(4.71, 4.55, 6.87)) == "4.71 (4.55 – 6.87)"
    assert str(Spread(2.001, 2.0, 2.002)) == "2"
    assert str(Spread(12.0, 3.0, 14.0, bound=True)) == "> 12"


def brute_reached(target: float, evaluated: dict[int, float], seconds: list[float], per_step: float) -> Reached:
    """Step by step: the first step that comes after all evaluations below, of those before the first one there."""
    marks = sorted(evaluated)
    there = [step for step in marks if evaluated[step] >= target]
    if not there:
        return Reached(sum(seconds), len(seconds) * per_step, True)
    for step in range(len(seconds) + 1):
        earlier = [mark for mark in marks if mark < there[0]]
        if step <= there[0] and all(step > mark for mark in earlier):
            return Reached(sum(seconds[:step]), step * per_step)
    raise AssertionError


def test_the_time_to_a_target_is_brute_forces() -> None:
    luck = random.Random(0)
    bounds = 0
    for _ in range(500):
        steps = luck.randint(1, 9)
        every = luck.randint(1, 3)
        marks = sorted({0, steps, *range(every, steps + 1, every)})
        evaluated = {mark: luck.random() for mark in marks}
        seconds = [luck.uniform(1, 9) for _ in range(steps)]
        found = reached(0.8, evaluated, seconds, 192)
        assert found == brute_reached(0.8, evaluated, seconds, 192)
        bounds += found.bound
    assert 50 < bounds < 450


def test_rare_evaluation_does_no_harm() -> None:
    assert reached(0.5, {0: 0.1, 3: 0.2, 6: 0.6}, [10] * 6, 8) == Reached(40, 32)
    assert reached(0.5, {0: 0.1, 1: 0.2, 2: 0.6, 3: 0.1}, [10] * 3, 8) == Reached(20, 16)
    assert reached(0.5, {0: 0.7, 1: 0.2}, [10], 8) == Reached(0, 0)


def test_bounded_ratios_never_say_more_than_is_known() -> None:
    """Whatever the true seconds of stopped runs are: an exact median stays, a bound lies at or below the truth."""
    luck = random.Random(1)
    exact = 0
    for _ in range(300):
        count = luck.choice([1, 3, 4, 5])
        ours = [Reached(luck.uniform(50, 150), 1) for _ in range(count)]
        peer = [Reached(luck.uniform(200, 1200), 1, luck.random() < 0.4) for _ in range(count)]
        found = slower(ours, peer)
        for _ in range(20):
            true = [one.seconds * (luck.uniform(1, 9) if one.bound else 1) for one in peer]
            truth = median(t / one.seconds for t, one in zip(true, ours, strict=True))
            assert truth >= found.middle - 1e-9
            assert found.bound or truth == pytest.approx(found.middle)
        exact += not found.bound and any(one.bound for one in peer)
    assert exact > 10
    with pytest.raises(ValueError, match="did not reach"):
        slower([Reached(1, 1, True)], [Reached(2, 1)])


def run_of(method: str, seed: int, rewards: list[float], seconds: float = 10, rate: float = 1e-5) -> dict[str, Any]:
    steps = len(rewards) - 1
    heldout = {str(step): value for step, value in enumerate(rewards)}
    one = {"method": method, "seed": seed, "learning_rate": rate, "heldout": heldout, "step_seconds": [seconds] * steps}
    return one | {"samples": 8 * steps, "peak_bytes": (2 if method == "raft" else 4) * 2**30, "versions": {"trl": "9"}}


def test_the_best_rate_is_first_at_the_target_or_highest_at_the_end() -> None:
    slow, quick = run_of("grpo", 0, [0, 0.2, 0.4, 0.6], rate=1e-6), run_of("grpo", 0, [0, 0.6, 0.2, 0.1], rate=1e-5)
    high = run_of("grpo", 0, [0, 0.4, 0.3, 0.4], rate=1e-4)
    for some in itertools.permutations([slow, quick, high]):
        assert time_to_reward.best_rate(some, 0.5) == 1e-5
        assert time_to_reward.best_rate(some, 0.7) == 1e-6
    assert time_to_reward.best_rate([high, quick], 0.7) == 1e-4


COMPARISON = """
from paired import Side, main

def ours(n): return {"rate": 3.0 * n, "limit": 4.0 * n, "peak_gb": 1.0}
def peer(n): return {"rate": 1.0 * n, "peak_gb": 2.0, "told": int(__import__("os").environ["A"])}

main({"one": {"n": 1}, "two": {"n": 2}}, {"ours": ours, "peer": Side(peer, env={"A": "7"}),
     "elsewhere": Side(__import__("pathlib").Path("other.py"), ".venv-nowhere")}, pairs=2)
"""


def test_a_rerun_joins_the_sessions_of_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """On a comparison of its own, each side in its process; then the page."""
    script = tmp_path / "sample.py"
    script.write_text(COMPARISON)
    monkeypatch.setattr(paired, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("PYTHONPATH", str(BENCH))

    def compare(*options: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [str(script), *options])
        runpy.run_path(str(script), run_name="__main__")
        (kept,) = (tmp_path / "results").glob("*/sample.json")
        return json.loads(kept.read_text())["cases"]

    before = compare()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [(line["case"], line["against"], line["ratio"]) for line in lines]
    assert found == [("one", "peer", "3"), ("two", "peer", "3")]
    assert [list(before), before["one"]["absent"]] == [["one", "two"], {"elsewhere": "no .venv-nowhere/bin/python"}]
    assert [run["rate"] for run in before["two"]["runs"]["ours"]] == [6, 6]
    after = compare("--case", "one", "--pairs", "1")
    assert after["two"] == before["two"] and list(after) == ["one", "two"]
    assert {side: len(runs) for side, runs in after["one"]["runs"].items()} == {"ours": 3, "peer": 3}
    assert [session["turns"] for session in after["one"]["sessions"]] == [2, 1]
    others = compare("--case", "one", "--pairs", "1", "--threads", "1")["one"]  # no longer the same comparison
    assert [session["turns"] for session in others["sessions"]] == [1] == [len(others["runs"]["peer"])]
    anew = compare("--case", "two", "--pairs", "1", "--anew")
    assert [session["turns"] for session in anew["two"]["sessions"]] == [1] == [len(anew["two"]["runs"]["ours"])]
    page.write(tmp_path / "results", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "| one | ours | 3 |  |  | 1 |  |  |" in text and "|  | peer | 1 | **3** |  | 2 | 0.5 | told 7 |" in text
    assert "not run here: no .venv-nowhere/bin/python" in text and "| one | 4 | 0.75 |" in text
    assert list((tmp_path / "results").glob("*/sample.png")) and "Not run here: Tuning" in text


def in_sessions(found: dict[str, list[list[float]]]) -> dict[str, Any]:
    """A comparison's record: for each peer the ratios of the turns of each session; ours is at 100."""
    one = {side: [{"rate": 100 / x, "peak_gb": 1.0} for turns in some for x in turns] for side, some in found.items()}
    some = next(iter(found.values()))
    ours = [{"rate": 100.0, "peak_gb": 1.0} for turns in some for _ in turns]
    asked = {"load_before": [0.5], "threads": None, "cpus": None}
    sessions = [{**asked, "when": f"day {day}", "turns": len(turns)} for day, turns in enumerate(some)]
    case = {"arguments": {}, "absent": {}, "sessions": sessions, "runs": {"ours": ours, **one}}
    return {
        "machine": "M",
        "about": "of mine",
        "compared": "rate",
        "smaller_is_better": False,
        "cases": {aims.SHORT: case},
    }


def test_how_far_sessions_lie_apart() -> None:
    """Two ratios by hand: logarithms ln 2 apart in one, level in the other; a degree of freedom each."""
    some = sessions.compared({"sample": in_sessions({"a": [[2, 2, 9], [4]], "b": [[3, 3, 3], [3]]})})
    assert [one.found for one in some] == [pytest.approx((2, 4)), pytest.approx((3, 3))]
    assert sessions.deviation(some) == pytest.approx((math.log(2) ** 2 / 2 / 2) ** 0.5)
    assert sessions.deviation([sessions.Compared("sample", "", "a", (2.0,))]) is None
    assert sessions.again(some) is None
    where = sessions.expected(some[0], 0.1)
    assert where.middle == pytest.approx(8**0.5)
    assert math.log(where.high / where.middle) == pytest.approx(0.2 * 1.5**0.5)


def test_what_is_expected_comes_19_times_in_20() -> None:
    luck = random.Random(0)
    inside = total = 0
    for _ in range(300):
        found = {}
        for peer in range(20):
            found[str(peer)] = [[(2 + peer) * math.exp(luck.gauss(0, 0.06))] for _ in range(3)]
        told = sessions.again(sessions.compared({"sample": in_sessions(found)}))
        assert told is not None
        total += told.ratios
        inside += told.ratios - len(told.outside)
    assert total == 6000
    assert 0.92 < inside / total < 0.97


def test_a_session_that_comes_otherwise_is_named(tmp_path: Path) -> None:
    found = {"generate": [[3.0], [3.1], [3.05]], "vLLM": [[2.0], [2.1], [4.0]]}
    path = tmp_path / "results" / "m" / "sample.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(in_sessions(found)))
    (said,) = page.write(tmp_path / "results", tmp_path / "page.md")
    assert "3 sessions" in said and "2 ratios pooled" in said
    assert f"1 of 2 ratios of the latest session lie where expected; outside: sample, {aims.SHORT}, vLLM: 4 ins" in said
    text = (tmp_path / "page.md").read_text()
    assert said.removeprefix("M: ") in text and "day 0 (turns: 1), day 1 (turns: 1), day 2 (turns: 1)" in text


def record(rates: dict[str, list[float]]) -> dict[str, Any]:
    runs = {side: [{"rate": rate, "limit": 400.0, "peak_gb": 1.0} for rate in some] for side, some in rates.items()}
    cases = {aims.SHORT: {"runs": runs, "absent": {}}}
    return {"compared": "rate", "smaller_is_better": False, "cases": cases}


def test_aims_are_judged_by_the_median_of_the_ratios() -> None:
    aim = aims.Aim("sampler", "sample", aims.SHORT, "ratio", "generate", 3)
    share = aims.Aim("sampler", "sample", aims.SHORT, "limit", "limit", 0.7)
    found = record({"ours": [310, 290, 330], "generate": [100, 100, 100]})
    assert aims.measured(aim, found) == Spread(3.1, 2.9, 3.3)
    assert aim.verdict(aims.measured(aim, found)) == "reached"
    assert aim.verdict(Spread(2.9, 2.8, 3.5)) == "not reached"
    assert aims.measured(share, found) == Spread(0.775, 0.725, 0.825)
    assert aim.verdict(aims.measured(aim, record({"ours": [1.0]}))) == "not measured"
    low = aims.Aim("memory", "sample", aims.SHORT, "memory", "generate", 0.4, at_most=True)
    assert [low.verdict(Spread(x, x, x)) for x in (0.39, 0.4, 0.41)] == ["reached", "reached", "not reached"]
    assert [aim.verdict(Spread(x, x, x, bound=True)) for x in (2.0, 3.5)] == ["open", "reached"]


def test_aims_name_cases_and_sides_that_exist() -> None:
    import round as round_
    import sample
    import tune

    known = {"sample": sample, "tune": tune, "round": round_}
    for aim in aims.AIMS:
        if aim.comparison in known:
            module = known[aim.comparison]
            assert aim.case in module.CASES
            assert aim.peer in {*module.SIDES, *page.LIMITS, "vLLM"}


def test_the_race_on_the_page(tmp_path: Path) -> None:
    ours = [run_of("raft", seed, [0.1, 0.3, 0.6], rate=5e-5) for seed in range(3)]
    firsts = [run_of(method, 0, [0.1, 0.1, 0.2], 200, rate) for method in ("grpo", "rloo") for rate in (1e-6, 1e-5)]
    others = [run_of(method, seed, [0.1, 0.3, 0.6], 90) for method in ("grpo", "rloo") for seed in (1, 2)]
    folder = tmp_path / "results" / "a-machine"
    folder.mkdir(parents=True)
    kept = {"machine": "A machine", "about": "of mine", "target": 0.5, "best": {"grpo": 1e-5, "rloo": 1e-5}}
    kept |= {"when": "today", "cap_seconds": 400, "factor": 20, "threads": 1, "cpus": ["0", "1"]}
    (folder / "time_to_reward.json").write_text(json.dumps(kept | {"runs": [*ours, *firsts, *others]}))
    page.write(tmp_path / "results", tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert aims.race(kept | {"runs": [*ours, *firsts, *others]}, "grpo")["ratio"] == Spread(9, 9, 20, high_bound=True)
    assert "| grpo | 1e-05 (best) | 0 | > 400 | > 16 | 4 | 0.100 → 0.200 |" in text
    assert "| raft | 5e-05 | 2 | 20 | 16 | 2 | 0.100 → 0.600 |" in text
    assert "| ≥ 10 | 9 (9 – > 20) | not reached |" in text and "| ≤ 0.4 | 0.5 | not reached |" in text
    assert "peers stopped after 400 s (20 × ours); 1 threads a side, cores 0 | 1. trl 9." in text
    assert (folder / "time_to_reward.png").exists()


def test_a_campaign_takes_the_best_rate_to_the_other_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours first, its median seconds make the cap; three rates on seed 0; the best on the others; all is kept."""
    asked: list[tuple[str, float | None]] = []
    ends = {1e-4: 0.3, 2e-4: 0.2, 5e-5: 0.4}

    def run(campaign: Any, job: time_to_reward.Job, cap: float | None = None) -> dict[str, Any]:
        asked.append((job.name, cap))
        if job.method == "raft":
            slower = 1 if job.learning_rate == 1e-4 else 2
            return run_of("raft", job.seed, [0.1, 0.3, 0.6], 10 * slower * (1 + job.seed), job.learning_rate)
        return run_of(job.method, job.seed, [0.1, ends[job.learning_rate]], 300, job.learning_rate)

    monkeypatch.setattr(time_to_reward.Campaign, "run", run)
    monkeypatch.setattr(time_to_reward, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["it", "--out", str(tmp_path / "runs"), "--factor", "5"])
    time_to_reward.main()
    rates = ("5e-05", "0.0001", "0.0002")
    ours = [*(f"raft-{rate}-0" for rate in rates), "raft-0.0001-1", "raft-0.0001-2"]
    firsts = [f"{method}-{rate}-0" for method in ("grpo", "rloo") for rate in rates]
    others = [f"{method}-5e-05-{seed}" for method in ("grpo", "rloo") for seed in (1, 2)]
    assert asked == [(name, None) for name in ours] + [(name, 200.0) for name in (*firsts, *others)]
    (path,) = tmp_path.glob("*/time_to_reward.json")
    kept = json.loads(path.read_text())
    assert kept["best"] == {"raft": 1e-4, "grpo": 5e-5, "rloo": 5e-5}
    assert (kept["cap_seconds"], len(kept["runs"])) == (200.0, 15)
    found = aims.race(kept, "grpo")["ratio"]
    assert (found.middle, found.bound, str(found)) == (7.5, True, "> 7.5")
    monkeypatch.setattr(sys, "argv", ["it", "--out", str(tmp_path / "runs"), "--target", "0.7"])
    with pytest.raises(SystemExit, match=r"ours did not reach 0\.7"):
        time_to_reward.main()
    monkeypatch.setattr(sys, "argv", ["it", "--out", str(tmp_path / "runs"), "--target", "0.1"])
    with pytest.raises(SystemExit, match="stands at 0.1 already"):
        time_to_reward.main()


def test_a_layers_matmuls_are_all_counted(tiny: Path) -> None:
    """FLOPs as torch counts them in a real forward pass without attention's own, and thrice that with the backward."""
    import limits
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    layers = limits.Layers.of(model)
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(3, 5, dtype=torch.long), logits_to_keep=2).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"]
    linear = sum(
        flops for operation, flops in counted.items() if operation in {torch.ops.aten.mm, torch.ops.aten.addmm}
    )
    assert linear == layers.flops(15, 6, backward=True) == 3 * layers.flops(15, 6)
    assert layers.seconds(3, 2) > 0 and layers.nbytes == 4 * (layers.flops(1, 1) / 2)

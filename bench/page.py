"""docs/benchmarks.md and its plots from the results in docs/benchmarks/MACHINE/COMPARISON.json; nothing is run.

Prose comes from the docstrings of the comparisons' scripts and from ``page.md.jinja``; figures only from results.

    python bench/page.py
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from aims import AIMS, Runs, against_limit, finalists, measured, memory, of, ratio
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from paired import OURS, RESULTS
from ratios import short, spread
from sessions import DEVIATIONS, Compared, compared, deviation, expected, told
from time_to_reward import PEERS, arrived, curve

from raftune import files
from raftune.plots import figure_of, save

BENCH = Path(__file__).parent
PAGE = RESULTS.with_suffix(".md")
TITLES = {
    "sample": "Sampling",
    "tune": "Tuning",
    "score": "Scoring",
    "round": "A whole round",
    "time_to_reward": "Time to a given reward",
    "image": "Pictures",
}
LIMITS = {
    "square_gflops": "square matmul, GFLOP/s",
    "layer_gflops": "feed-forward layer, GFLOP/s",
    "model_gflops": "all linear layers, GFLOP/s",
    "memory_gbs": "memory, GB/s",
    "by_matmul": "matmul allows",
    "by_memory": "memory allows",
    "by_both": "both allow",
    "limit": "limit",
    "at_peak": "at the best matmul rate",
}
UNSHOWN = {"rate", "seconds", "peak_gb", "versions", "threads", "need_sample", "need_prefill", "need_tune", *LIMITS}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comparison_table(record: dict[str, Any], ranges: dict[tuple[str, str], str]) -> str:
    """A row a case and side; ``ranges``: of a case and peer, where a further session's ratio should lie."""
    key, rows = record["compared"], []
    for case, found in record["cases"].items():
        runs = found["runs"]
        for side, some in runs.items():
            head = [case if side == OURS else "", side, str(spread(of(some, key)))]
            better = ["", ""] if side == OURS else [f"**{ratio(record, runs, side)}**", ranges.get((case, side), "")]
            less = "" if side == OURS else str(memory(runs[OURS], some))
            rows.append([*head, *better, str(spread(of(some, "peak_gb"))), less, extras(some)])
        rows += [["", side, f"not run here: {why}", *[""] * 5] for side, why in found["absent"].items()]
    heads = ["case", "side", key, "ours is better by", "next session", "peak GiB", "memory, ours / peer", "of it"]
    return table(heads, rows)


def extras(runs: Runs) -> str:
    """What a side tells besides, medians."""
    names = [name for name, value in runs[0].items() if name not in UNSHOWN and isinstance(value, int | float)]
    return ", ".join(f"{name} {short(median(of(runs, name)))}" for name in names)


def limits_table(record: dict[str, Any]) -> str | None:
    """A row a case; None where no limit was measured."""
    cases = {case: found["runs"][OURS] for case, found in record["cases"].items() if OURS in found["runs"]}
    cases = {case: runs for case, runs in cases.items() if "limit" in runs[0]}
    if not cases:
        return None
    known = {name: head for name, head in LIMITS.items() if any(name in runs[0] for runs in cases.values())}
    rows = []
    for case, runs in cases.items():
        figures = [str(spread(of(runs, name))) if name in runs[0] else "" for name in known]
        rows.append([case, *figures, str(against_limit(runs, record["compared"], "limit"))])
    return table(["case", *known.values(), f"{record['compared']} / limit"], rows)


def race_table(record: dict[str, Any]) -> str:
    """A row a run."""
    rows = []
    for method in ("raft", *PEERS):
        runs = [run for run in record["runs"] if run["method"] == method]
        for run in sorted(runs, key=lambda run: (run["learning_rate"], run["seed"])):
            when, rewards = arrived(run, record["target"]), curve(run)
            more = "> " if when.bound else ""
            figures = [more + short(when.seconds), more + short(when.samples), short(run["peak_bytes"] / 1024**3)]
            best = " (best)" if record["best"].get(method) == run["learning_rate"] else ""
            last = f"{rewards[0]:.3f} → {rewards[max(rewards)]:.3f}"
            rows.append([method, f"{run['learning_rate']:g}{best}", str(run["seed"]), *figures, last])
    heads = ["method", "learning rate", "seed", f"s to {record['target']:g}", "samples", "peak GiB", "reward"]
    return table(heads, rows)


def plot(record: dict[str, Any], path: Path) -> None:
    """A bar a side and case (median), a dot a run, a line at the limit."""
    cases = record["cases"]
    figure, panels = figure_of(1, len(cases))
    figure.set_size_inches(7.2, 0.6 + sum(0.7 + 0.34 * len(found["runs"]) for found in cases.values()))
    for panel, (case, found) in zip(panels, cases.items(), strict=True):
        sides = list(found["runs"])
        values = [of(found["runs"][side], record["compared"]) for side in sides]
        colours = ["tab:blue" if side == OURS else "lightgrey" for side in sides]
        panel.barh(sides, [median(some) for some in values], color=colours, height=0.6)
        for place, some in enumerate(values):
            panel.plot(some, [place] * len(some), "k.", markersize=4)
        if "limit" in found["runs"][OURS][0]:
            limit = median(of(found["runs"][OURS], "limit"))
            panel.axvline(limit, linestyle=":", color="tab:red", label="what the machine allows")
            panel.legend(fontsize="x-small", frameon=False, loc="lower right")
        panel.invert_yaxis()
        panel.set_axisbelow(True)
        panel.set_title(case, fontsize="small", loc="left")
        panel.tick_params(labelsize="small")
        panel.set_xlim(left=0)
    panels[-1].set_xlabel("seconds" if record["smaller_is_better"] else "per second")
    save(figure, path)


def plot_race(record: dict[str, Any], path: Path) -> None:
    """Held-out reward over training seconds, a line a run at each method's best rate."""
    figure, (panel,) = figure_of(1)
    figure.set_size_inches(7.2, 4.2)
    for method, colour in zip(("raft", *PEERS), ("tab:blue", "tab:orange", "tab:green"), strict=True):
        for run in finalists(record, method):
            rewards = dict(sorted(curve(run).items()))
            seconds = [sum(run["step_seconds"][:step]) for step in rewards]
            label = method if run["seed"] == 0 else None
            panel.plot(seconds, list(rewards.values()), color=colour, marker="o", markersize=3, label=label)
    panel.axhline(record["target"], linestyle=":", color="grey")
    panel.set(xlabel="seconds of training", ylabel="held-out reward")
    panel.set_xlim(left=0)
    panel.legend(frameon=False)
    save(figure, path)


def prose(script: str) -> str:
    """What a script says of itself."""
    return ast.get_docstring(ast.parse((BENCH / f"{script}.py").read_text(encoding="utf-8"))) or ""


def section(name: str, record: dict[str, Any], folder: Path, some: Sequence[Compared]) -> dict[str, Any]:
    """What the template says of a comparison; its plot is drawn. ``some``: all ratios of the machine."""
    shown: dict[str, Any] = {"name": name, "title": TITLES[name], "about": prose(name), "limits": None}
    draw: Callable[[dict[str, Any], Path], None] = plot_race if name == "time_to_reward" else plot
    draw(record, folder / f"{name}.png")
    if name == "time_to_reward":
        return shown | {"table": race_table(record), "how": how_raced(record)}
    apart = deviation(some)
    ranges = (
        {} if apart is None else {(one.case, one.peer): expected(one, apart) for one in some if one.comparison == name}
    )
    shown["table"] = comparison_table(
        record, {key: f"{short(one.low)} – {short(one.high)}" for key, one in ranges.items()}
    )
    return shown | {"limits": limits_table(record), "how": how_compared(record)}


def how_compared(record: dict[str, Any]) -> str:
    """When, how often, on how many threads, with which versions."""
    cases = record["cases"].values()
    libraries: dict[str, list[str]] = {}  # what a side ran on → the sides that did
    for side, runs in {side: runs for found in cases for side, runs in found["runs"].items()}.items():
        listed = dict.fromkeys(_listed(run.get("versions", {})) for run in runs)
        libraries.setdefault(" and then ".join(filter(None, listed)), []).append(side)
    by = [f"{' / '.join(sides)}: {listed}" for listed, sides in libraries.items() if listed]
    sessions = [session for found in cases for session in found["sessions"]]
    turns: dict[str, set[int]] = {}  # of a day's sessions
    for session in sorted(sessions, key=lambda session: session["when"]):
        turns.setdefault(session["when"], set()).add(session["turns"])
    days = ", ".join(f"{day} (turns: {', '.join(map(str, sorted(some)))})" for day, some in turns.items())
    load = max(session["load_before"][0] for session in sessions)
    return f"{days}; load average before: {load:g} at most; {_confined(sessions[-1])}. {'; '.join(by)}."


def how_raced(record: dict[str, Any]) -> str:
    return (
        f"{record['when']}; target {record['target']:g}; peers stopped after {short(record['cap_seconds'])} s "
        f"({record['factor']:g} × ours); {_confined(record)}. {_listed(record['runs'][-1]['versions'])}."
    )


def _confined(conditions: dict[str, Any]) -> str:
    threads, cpus = conditions["threads"], conditions["cpus"]
    told = f"{threads} threads a side" if threads else "threads as each library chooses"
    return f"{told}, cores {' | '.join(cpus) if isinstance(cpus, list) else cpus}" if cpus else told


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{library} {version}" for library, version in versions.items())


def machine_of(folder: Path) -> dict[str, Any]:
    """All that is known of a machine."""
    records = {name: files.read_json(folder / f"{name}.json") for name in TITLES if (folder / f"{name}.json").exists()}
    first = next(iter(records.values()))
    some = compared({name: record for name, record in records.items() if "cases" in record})
    aims = [(aim, measured(aim, records[aim.comparison]) if aim.comparison in records else None) for aim in AIMS]
    return {
        "name": first["machine"],
        "about": first["about"],
        "folder": folder.name,
        "aims": table(
            ["aim", "", "measured", ""],
            [[aim.what, str(aim), str(found or "–"), aim.verdict(found)] for aim, found in aims],
        ),
        "sessions": told(some),
        "sections": [section(name, record, folder, some) for name, record in records.items()],
        "missing": [title for name, title in TITLES.items() if name not in records],
    }


def write(results: Path = RESULTS, page: Path = PAGE) -> list[str]:
    """The page and the plots of everything below ``results``; returns what is said of the sessions of each machine."""
    machines = [machine_of(folder) for folder in sorted({path.parent for path in results.glob("*/*.json")})]
    environment = Environment(
        loader=FileSystemLoader(BENCH), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.md.jinja").render(
        machines=machines, limits=prose("limits"), deviations=DEVIATIONS
    )
    with files.replacing(page) as part:
        part.write_text(text.rstrip() + "\n", encoding="utf-8")
    return [f"{machine['name']}: {machine['sessions']}" for machine in machines if machine["sessions"]]


if __name__ == "__main__":
    for line in write():
        print(line)
    print(PAGE)

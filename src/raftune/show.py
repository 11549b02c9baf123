"""What a person sees in the terminal: bars, the table of rounds, answers before and after."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from . import progress, provenance
from .types import Scored, seed_of

if TYPE_CHECKING:
    from .experiment import Experiment
    from .stream import Stream

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
SHOWN = 3  # outputs before and after
COLUMNS = {  # metric → (heading, format)
    "round": ("round", "{:d}"),
    "sample/reward_mean": ("sampled", "{:.3f}"),
    "chosen/reward_mean": ("chosen", "{:.3f}"),
    "heldout/reward_mean": ("held-out", "{:.3f}"),
    "heldout/perplexity": ("perplexity", "{:.1f}"),
    "heldout/kl": ("KL", "{:.2f}"),
    "heldout/distinct_2": ("distinct-2", "{:.2f}"),
    "heldout/length_mean": ("length", "{:.0f}"),
    "heldout/diversity": ("diversity", "{:.3f}"),
    "sample/tokens_per_s": ("sample tok/s", "{:.0f}"),
    "tune/tokens_per_s": ("tune tok/s", "{:.0f}"),
    "sample/pictures_per_s": ("drawn/s", "{:.1f}"),
    "won": ("chosen from", "{}"),
    "time/round_s": ("seconds", "{:.1f}"),
}


Columns = Mapping[str, tuple[str, str]]


def columns_with(watched: Sequence[str]) -> Columns:
    """Further figures stand behind the held-out reward."""
    head, tail = list(COLUMNS.items())[:4], list(COLUMNS.items())[4:]
    return dict([*head, *((key, (key, "{:.3f}")) for key in watched), *tail])


class Show:
    """A live table of rounds with bars below it; plain lines where the output is no terminal."""

    def __init__(self, console: Console, watched: Sequence[str] = ()) -> None:
        """``watched``: further figures to show, by their key."""
        self.console = console
        self.columns = columns_with(watched)
        self.rows: list[Mapping[str, Any]] = []
        self.bars = Progress(
            TextColumn("{task.description:>9}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    @contextmanager
    def live(self) -> Iterator[None]:
        """Within this block bars and rounds appear as they come."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self.view(), console=self.console, refresh_per_second=4) as live, progress.shown_by(self._bar):
            self._refresh = live.update
            yield
            for task in self.bars.task_ids:
                self.bars.remove_task(task)
            live.update(Group(*self._rounds()))

    def _bar(self, description: str, total: int) -> tuple[progress.Advance, Any]:
        task = self.bars.add_task(description, total=total)
        return lambda n: self.bars.advance(task, n), lambda: self.bars.remove_task(task)

    def view(self) -> Group:
        return Group(*self._rounds(), self.bars)

    def _rounds(self) -> list[RenderableType]:
        """The table, and below it what should make a person look."""
        if not self.rows:
            return []
        return [rounds_table(self.rows, self.columns), *(line for row in self.rows for line in alarm_lines(row))]

    def round(self, row: Mapping[str, Any]) -> None:
        """One more round is done."""
        won = provenance.in_words(row)
        row = {**row, "won": plain(won)} if won else row
        self.rows.append(row)
        if self.console.is_terminal:
            self._refresh(self.view())
            return
        figures = [f"{heading} {value}" for heading, value in _figures(row, self.columns)]
        self.console.print("  ".join(figures), soft_wrap=True, highlight=False)
        for line in alarm_lines(row):
            self.console.print(line, soft_wrap=True)


def _figures(row: Mapping[str, Any], columns: Columns) -> Iterator[tuple[str, str]]:
    for key, (heading, form) in columns.items():
        if key in row:
            yield heading, form.format(row[key])


def alarm_lines(row: Mapping[str, Any]) -> list[Text]:
    """The alarms of a round, a line each."""
    return [Text(f" ! round {row['round']}, {alarm}", style="yellow") for alarm in row.get("alarms", ())]


def rounds_table(rows: list[Mapping[str, Any]], columns: Columns = COLUMNS) -> Table:
    """One line a round; the best held-out reward stands out, what was not measured is a dash."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [key for key in columns if any(key in row for row in rows)]
    for key in shown:
        table.add_column(columns[key][0], justify="right")
    best = max((row["heldout/reward_mean"] for row in rows if "heldout/reward_mean" in row), default=None)
    for row in rows:
        cells = [Text(columns[key][1].format(row[key]) if key in row else "–") for key in shown]
        is_best = best is not None and row.get("heldout/reward_mean") == best
        table.add_row(*cells, style="bold green" if is_best else None)
    return table


def exhibit(before: Sequence[Scored], after: Sequence[Scored], round_number: int, folder: Path) -> Table:
    """A few held-out texts before any tuning and after ``round_number``."""
    return before_after(demonstrate(before, after, SHOWN), round_number)


def demonstrate(before: Sequence[Scored], after: Sequence[Scored], count: int) -> list[tuple[Scored, Scored]]:
    """``count`` held-out outputs before and after, picked by their prompt's id and not by how they look."""
    pairs = {(one.candidate.prompt.id, one.candidate.index): one for one in after if one.candidate.index == 0}
    both = [(one, pairs[key]) for one in before if (key := (one.candidate.prompt.id, one.candidate.index)) in pairs]
    return sorted(both, key=lambda pair: seed_of("show", pair[0].candidate.prompt.id))[:count]


def before_after(pairs: list[tuple[Scored, Scored]], round_number: int) -> Table:
    """Held-out prompts with the answer before any tuning and after ``round_number``, side by side."""
    table = Table(title=f"Held-out prompts, before and after round {round_number}", box=box.ROUNDED, show_lines=True)
    table.add_column("prompt", ratio=2, overflow="fold")
    table.add_column("before", ratio=4, overflow="fold")
    table.add_column("after", ratio=4, overflow="fold")
    for before, after in pairs:
        content = before.candidate.prompt.content
        prompt = content if isinstance(content, str) else content[-1]["content"]
        table.add_row(Text(_short(prompt)), _answer(before), _answer(after))
    return table


def plain(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return CONTROL.sub("�", text)


def _short(text: str, limit: int = 400) -> str:
    return plain(text if len(text) <= limit else text[: limit - 1] + "…")


def _answer(one: Scored) -> Text:
    reward = "not scored" if one.reward is None else f"{one.reward:+.2f}"
    return Text.assemble((reward, "bold"), " ", _short(str(one.candidate.output).strip()))


def plan(experiment: Experiment) -> str:
    """What a run is about to do, in one line."""
    parts, recipe = experiment.parts, experiment.parts.recipe
    per_prompt = " + ".join(
        f"{'all' if source.k is None else source.k} {name}" for name, source in (recipe.sample.sources or {}).items()
    )
    return (
        f"{experiment.run.root}: up to {recipe.rounds} rounds of {recipe.sample.prompts_per_round} prompts × "
        f"{per_prompt or recipe.sample.k}, {len(parts.prompts.train)} prompts to train, "
        f"{len(parts.prompts.heldout)} held out"
    )


def follow(console: Console, experiment: Experiment, stream: Stream | None = None) -> None:
    """Do what remains of a run before a person's eyes, and show what came of it."""
    view = Show(console, experiment.parts.watched)
    with view.live():
        for row in experiment.rounds(stream):
            view.round(row)
    if stream is not None and stream.ended:
        console.print(f"ended: {stream.ended}", highlight=False, soft_wrap=True)
    _conclude(console, experiment)


def _conclude(console: Console, experiment: Experiment) -> None:
    run, parts, folder = experiment.run, experiment.parts, experiment.run.root
    best, last = run.best(), run.last
    shown = best or last  # where nothing got better, a person wants to see what did happen
    before, after = experiment.evaluated(0), experiment.evaluated(shown)
    if before and after:
        console.print(parts.modality.exhibit(before, after, shown, folder), highlight=False)
    where = folder / "best" if (folder / "best").exists() else parts.model
    console.print(f"best policy: {where} (round {best} of {last})", highlight=False, soft_wrap=True)
    if parts.recipe.report and (page := folder / "report.html").exists():
        console.print(f"report: {page}", highlight=False, soft_wrap=True)

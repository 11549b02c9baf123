"""The page: a tab to browse a run's candidates, and one to judge pairs blind."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from gradio.themes import Default

from .. import interrupt
from ..errors import UserError
from .ballots import rater_of
from .cards import CSS, Cards, unmarked
from .shelf import ORDERS, Kind, Question, Shelf
from .trial import Trial

PAGE = 20  # candidates at once
REFRESH = 15.0  # seconds between two looks at a run that goes on
ANY = "any"
KINDS: dict[str, Kind] = {"sampled": "scored", "held out": "heldout"}
CHOSEN = {ANY: None, "chosen": True, "not chosen": False}
FONTS = ["system-ui", "sans-serif"]  # none that comes from a network


@dataclass(frozen=True)
class App:
    """What the page shows: a run's ``shelf``; where there is a ``trial``, its pairs and nothing that tells whose."""

    shelf: Shelf
    trial: Trial | None = None

    def blocks(self) -> gr.Blocks:
        name = self.shelf.run.resolve().name
        with gr.Blocks(title=f"{name} · raftune", analytics_enabled=False) as page:
            gr.HTML(unmarked(f"<h1>{escape(name)}</h1>"))
            if self.trial is None:
                self._browse(page)
            else:
                self._judge(page, self.trial)
        return page

    def serve(self, host: str, port: int | None, token: str | None, ready: Callable[[str], None]) -> None:
        """Serve the page until a signal asks to stop; ``ready`` is told its address."""
        blocks = self.blocks()
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            auth=None if token is None else lambda _, given: hmac.compare_digest(given.encode(), token.encode()),
            auth_message="Any name; the token is the password.",
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            footer_links=[],
            css=CSS,
            theme=Default(primary_hue="blue", font=FONTS, font_mono=["ui-monospace", "monospace"]),
            ssr_mode=False,
        )
        ready(address)
        try:
            while not interrupt.requested():
                time.sleep(0.2)
        finally:
            blocks.close(verbose=False)

    def _browse(self, page: gr.Blocks) -> None:
        cards = Cards()
        with gr.Row():
            kind = gr.Radio(list(KINDS), value="sampled", label="Candidates")
            number = gr.Dropdown([ANY], value=ANY, label="Round")
            source = gr.Dropdown([ANY], value=ANY, label="Source")
            chosen = gr.Dropdown(list(CHOSEN), value=ANY, label="Chosen")
            order = gr.Dropdown(list(ORDERS), value=next(iter(ORDERS)), label="Order")
        with gr.Row():
            prompt = gr.Textbox(label="Prompt contains, or its id")
            text = gr.Textbox(label="Answer contains")
            low = gr.Textbox(label="Reward at least")
            high = gr.Textbox(label="Reward at most")
        with gr.Row(elem_id="turning"):
            back = gr.Button("Earlier", size="sm", scale=0, min_width=100)
            told = gr.Markdown("", elem_id="found")
            forth = gr.Button("Later", size="sm", scale=0, min_width=100)
        shown = gr.HTML("", elem_id="cards")
        start = gr.State(0)
        asked = [kind, number, source, chosen, order, prompt, text, low, high]

        def look(begin: int, *given: Any) -> tuple[str, str, int]:
            hits = self.shelf.find(question(*given))
            begin = max(0, min(begin, (len(hits) - 1) // PAGE * PAGE))
            rows = self.shelf.page(hits, begin, PAGE)
            where = f"{begin + 1:,} to {begin + len(rows):,} of {len(hits):,}" if rows else "nothing fits"
            return cards.of_rows(rows), where, begin

        def choices(kind: str) -> tuple[Any, Any]:
            rounds, sources = self.shelf.rounds(KINDS[kind]), self.shelf.sources(KINDS[kind])
            return gr.Dropdown([ANY, *map(str, rounds)]), gr.Dropdown([ANY, *sources])

        shows: dict[str, Any] = {"outputs": [shown, told, start], "show_progress": "minimal"}
        first = said(lambda *given: look(0, *given))
        for one in (kind, number, source, chosen, order):
            one.change(first, asked, **shows)
        for one in (prompt, text, low, high):
            gr.on([one.submit, one.blur], first, asked, **shows)
        back.click(said(lambda begin, *given: look(begin - PAGE, *given)), [start, *asked], **shows)
        forth.click(said(lambda begin, *given: look(begin + PAGE, *given)), [start, *asked], **shows)
        # Of a run that goes on: what came since; who reads is not disturbed
        renews = [kind.change, gr.Timer(REFRESH).tick, page.load]
        gr.on(renews, said(choices), kind, [number, source], show_progress="hidden")
        page.load(first, asked, **shows)

    def _judge(self, page: gr.Blocks, trial: Trial) -> None:
        cards = Cards()
        with gr.Row():
            name = gr.Textbox(label="Your name; votes are kept under it", scale=3)
            begin = gr.Button("Begin", variant="primary", scale=1)
        state = gr.Markdown("", elem_id="state")
        shown = gr.HTML("", elem_id="pair")
        with gr.Row(visible=False) as voting:
            buttons = {
                "first": gr.Button("The first is better"),
                "tie": gr.Button("Neither"),
                "second": gr.Button("The second is better"),
            }
        with gr.Row(visible=False) as below:
            note = gr.Textbox(label="A note, if you like", scale=3)
            again = gr.Button("Change my last vote", size="sm", scale=1)
        who, at = gr.State(""), gr.State(("", 0.0))
        kept = gr.BrowserState("", storage_key="raftune-rater")
        outputs = [state, shown, voting, below, note, who, at]

        def see(rater: str, pair: dict[str, Any] | None = None) -> tuple[Any, ...]:
            return seen(trial, cards, rater, pair)

        def start(given: str) -> tuple[Any, ...]:
            rater = rater_of(given)
            return (*see(rater), rater)

        def vote(what: str) -> Callable[..., tuple[Any, ...]]:
            def cast(rater: str, shown_at: tuple[str, float], note: str) -> tuple[Any, ...]:
                pair, when = shown_at
                if not pair or not trial.vote(rater, pair, what, note, when):
                    return (gr.skip(),) * len(outputs)
                return see(rater)

            return said(cast)

        def last(rater: str) -> tuple[Any, ...]:
            given = trial.given(rater)
            return see(rater, trial.pair(given[-1].pair) if given else None)

        for what in (begin.click, name.submit):
            what(said(start), name, [*outputs, kept])
        for what, button in buttons.items():
            button.click(vote(what), [who, at, note], outputs, show_progress="hidden")
        again.click(said(last), who, outputs)
        # Who is quicker than the page keeps what was typed
        page.load(lambda rater, typed: rater if rater and not typed else gr.skip(), [kept, name], name)
        self._results(trial)

    def _results(self, trial: Trial) -> None:
        with gr.Accordion("Results; whoever still judges should not look", open=False):
            look, out = gr.Button("Show what was voted so far", size="sm"), gr.Markdown("")
            look.click(said(lambda: results(trial)), None, out)


def seen(trial: Trial, cards: Cards, rater: str, pair: dict[str, Any] | None) -> tuple[Any, ...]:
    """What a rater sees: the pair that is named, else the next one."""
    done, pair = len(trial.given(rater)), pair or trial.next_for(rater)
    told = f"{unmarked(escape(rater))}: {done} of {len(trial.pairs)} pairs" + (
        "" if pair else ". That was all; thank you."
    )
    voting, below = gr.Row(visible=pair is not None), gr.Row(visible=bool(done) or pair is not None)
    shown_at = (pair["id"] if pair else "", time.time())
    return told, cards.of_pair(pair, trial.folder) if pair else "", voting, below, "", rater, shown_at


def results(trial: Trial) -> str:
    """Win rate, agreement, and where the votes were written."""
    total, counts = trial.results()
    if total is None:
        return "No votes yet."
    low, high = total.interval
    lines = [
        f"A wins {total.win}, ties {total.tie}, loses {total.loss} of {total.pairs} pairs on {total.prompts} prompts; "
        f"win rate {total.win_rate:.1%}, 95 % {low:.1%} to {high:.1%} ({total.interval_by})",
        f"{counts['votes']} votes; raters agree on {counts['raters_agree']} of {counts['several_raters']} shared pairs",
    ]
    lines += [f"agreement (Krippendorff's α) {counts['agreement']:.2f}"] if "agreement" in counts else []
    path, count = trial.export()
    return "\n\n".join([*lines, f"`{path}`: {count} votes"])


def said(work: Callable[..., Any]) -> Callable[..., Any]:
    """The same; what the user can mend is said on the page, which stays as it is."""

    def done(*given: Any) -> Any:
        try:
            return work(*given)
        except UserError as error:
            gr.Warning(escape(str(error)), title="Not yet")
            return gr.skip()

    return done


def question(
    kind: str,
    number: str,
    source: str,
    chosen: str,
    order: str,
    prompt: str,
    text: str,
    low: str,
    high: str,
) -> Question:
    return Question(
        kind=KINDS[kind],
        round=None if number == ANY else int(number),
        source="" if source == ANY else source,
        chosen=CHOSEN[chosen],
        order=order,
        prompt=prompt.strip(),
        text=text,
        low=_number("Reward at least", low),
        high=_number("Reward at most", high),
    )


def _number(label: str, given: str) -> float | None:
    if not given.strip():
        return None
    try:
        return float(given)
    except ValueError:
        raise UserError(f"{label}: {given!r} is no number; write one like -0.5, or nothing") from None

"""What comes before the loop (paper, sections 3 and 5): the supervised start and the reward model, as commands."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import files
from .commands import Out, bars, check_out, console, say_dropped
from .errors import UserError
from .exits import exits
from .stages import PolicyOption

if TYPE_CHECKING:
    from .preferences import Encoded
    from .protocols import Learner

preparation = typer.Typer()

Data = Annotated[str, typer.Option("--data", help=".jsonl (also .gz), .parquet or a Hub dataset.")]
Heldout = Annotated[float, typer.Option(min=0, max=0.9, help="Share that is never trained on.")]
MaxRows = Annotated[int | None, typer.Option(min=1, help="So many rows, drawn by the seed.")]
Split = Annotated[str, typer.Option(help="The split of a Hub dataset.")]
Dialogues = Annotated[
    bool,
    typer.Option("--dialogues/--texts", help="Take texts like '\\n\\nHuman: … \\n\\nAssistant: …' as messages."),
]


@preparation.command()
@exits
def sft(
    policy: PolicyOption,
    data: Data,
    out: Out,
    learning_rate: float = 2e-5,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    lora: Annotated[bool, typer.Option("--lora/--full", help="An adapter, or all parameters.")] = False,
    lora_r: Annotated[int, typer.Option(min=1)] = 16,
    heldout: Heldout = 0.05,
    max_tokens: Annotated[int, typer.Option(min=2, help="Longer examples are dropped, texts cut; counted.")] = 1024,
    max_rows: MaxRows = None,
    column: Annotated[str | None, typer.Option(help="The column with the messages or the text.")] = None,
    dialogues: Dialogues = True,
    split: Split = "train",
    seed: int = 0,
) -> None:
    """Supervised fine-tuning on demonstrations: the start of the loop."""
    from . import demonstrations, pick
    from .models import load_tokenizer
    from .prompts import split_groups
    from .tokens import encode_demonstration

    check_out(out, folder=True)
    located = pick.model(policy)
    if pick.modality_of(located) == "image":
        raise UserError(f"--policy {policy}: makes pictures; sft is for texts")
    learner = _learner(learning_rate, epochs, batch_size, lora_r if lora else None)
    tokenizer = load_tokenizer(located)
    usable, counts = demonstrations.tidy(
        demonstrations.parse(_rows(data, split, max_rows, seed), column, dialogues),
        lambda one: encode_demonstration(tokenizer, one.prompt, one.output),
        max_tokens,
    )
    say_dropped(console(), {rule: n for rule, n in counts.items() if rule not in {"examples", "cut"}}, "examples")
    if counts["cut"]:
        console().print(f"texts cut at {max_tokens} tokens: {counts['cut']}", highlight=False)
    _some(usable, data)
    train, held = split_groups(usable, lambda one: one.group, heldout, seed)
    pairs = [one.pair for one in held]
    figures: dict[str, Any] = counts | {"train": len(train), "heldout": len(held)}
    with bars():
        if held:
            figures["heldout/perplexity_before"] = pick.perplexity(located, pairs)
        learner.learn(located, [one.pair for one in train], out, (seed, "sft"))
        if held:
            figures["heldout/perplexity"] = pick.perplexity(str(out), pairs)
    files.write_json(out / files.FIGURES, files.read_json(out / files.FIGURES) | figures)
    _say(out, figures, "tuned policy")


def _learner(learning_rate: float, epochs: int, batch_size: int, lora_r: int | None) -> Any:
    from . import pick
    from .config import LoraConfig, TextTuneConfig
    from .recipe import validated

    usual = LoraConfig()
    settings = {"r": lora_r, "alpha": round(usual.alpha / usual.r * lora_r)} if lora_r else None
    given = {"learning_rate": learning_rate, "epochs": epochs, "batch_size": batch_size, "lora": settings}
    learner: Learner = pick.learner(validated(TextTuneConfig, given, "tune"))
    return learner


def _rows(data: str, split: str, max_rows: int | None, seed: int) -> list[Any]:
    from .prompts import read_rows, subset

    return subset(read_rows(data, split), max_rows, seed)


def _some(usable: Sequence[Any], data: str) -> None:
    if not usable:
        raise UserError(f"{data}: no usable row")


@preparation.command("reward-model")
@exits
def reward_model(
    model: Annotated[str, typer.Option("--model", help="The base: a language model or an encoder.")],
    data: Data,
    out: Out,
    learning_rate: float = 2e-5,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    center: Annotated[float | None, typer.Option(min=0, help="Pairs: keeps rewards about zero, like 0.01.")] = None,
    heldout: Heldout = 0.1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Rows with a longer side are dropped and counted.")] = 512,
    max_rows: MaxRows = None,
    dialogues: Dialogues = True,
    split: Split = "train",
    seed: int = 0,
) -> None:
    """A reward model from preference pairs, or a classifier from labelled texts: `classifier:DIR`."""
    from . import pick, preferences
    from .prompts import split_groups

    check_out(out, folder=True)
    learner = pick.reward_learner(learning_rate=learning_rate, epochs=epochs, batch_size=batch_size, center=center)
    start = time.perf_counter()
    located = pick.model(model)
    examples, counts = preferences.parse(_rows(data, split, max_rows, seed), dialogues)
    tokenizer, usable, dropped = _encoded(located, examples, max_tokens)
    counts |= dropped
    say_dropped(console(), counts, "rows")
    _some(usable, data)
    train, held = split_groups(usable, lambda one: one.group, heldout, seed)
    names = _names(usable)
    if names is not None and center is not None:
        raise UserError("--center: is for pairs; these are labelled texts")
    state = out.parent / f"{out.name}.tuning"
    figures: dict[str, Any] = counts | {"train": len(train), "heldout": len(held)}
    with files.replacing_folder(out) as part:
        with bars():
            rows = [_row(one, names) for one in train]
            figures |= learner.train(located, tokenizer, rows, names, part, state, (seed, "reward-model"))
            figures |= _judged(part, held, names)
        figures["seconds"] = time.perf_counter() - start
        files.write_json(part / files.FIGURES, figures)
    shutil.rmtree(state, ignore_errors=True)
    _say(out, figures, "reward model" if names is None else f"classifier of {', '.join(names)}")


def _encoded(located: str, examples: Sequence[Any], limit: int) -> tuple[Any, list[Encoded], dict[str, int]]:
    """The base's tokenizer, which learns a plain chat template where it has none and needs one; the usable examples."""
    from . import preferences
    from .models import context_length, load_config, load_tokenizer, quiet
    from .tokens import PLAIN_CHAT, encode_answered

    tokenizer = load_tokenizer(located)
    chats = any(not isinstance(side.prompt, str) for one in examples for side in one.sides)
    if chats and not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_CHAT
        console().print(
            "the base has no chat template; dialogues are written plainly, 'Human: …', 'Assistant: …'", soft_wrap=True
        )
    limit = min(limit, context_length(tokenizer, load_config(located)))
    with quiet():
        usable, counts = preferences.tidy(
            examples, lambda side: encode_answered(tokenizer, side.prompt, side.answer), limit
        )
    return tokenizer, usable, counts


def _names(usable: Sequence[Encoded]) -> list[str] | None:
    """The classes, numbers in their order; None for pairs."""
    from .preferences import Labelled

    labels = {one.example.label for one in usable if isinstance(one.example, Labelled)}
    if not labels:
        return None
    if len(labels) == 1:
        raise UserError(f"--data: every label is {labels.pop()!r}; two or more are needed")
    numbers = all(label.lstrip("-").isdigit() for label in labels)
    return sorted(labels, key=int) if numbers else sorted(labels)


def _row(one: Encoded, names: Sequence[str] | None) -> dict[str, Any]:
    from .preferences import Labelled

    if names is not None and isinstance(one.example, Labelled):
        return {"input_ids": list(one.ids[0]), "labels": names.index(one.example.label)}
    chosen, rejected = one.ids
    return {"chosen_ids": list(chosen), "rejected_ids": list(rejected)}


def _judged(folder: Path, held: Sequence[Encoded], names: Sequence[str] | None) -> dict[str, float]:
    """Held-out figures of the classifier as it will serve, and its plot beside it."""
    from . import pick
    from .preferences import Labelled, longer_chosen, longer_wins
    from .types import Candidate, Prompt, Text

    if not held:
        return {}
    sides = [
        [Candidate(Prompt(str(at), side.prompt), 0, Text(side.answer)) for at, side in enumerate(column)]
        for column in zip(*(one.example.sides for one in held), strict=True)
    ]
    labels = [names.index(one.example.label) for one in held if names and isinstance(one.example, Labelled)]
    figures, plot = pick.calibration(str(folder), sides, labels, names)
    plot(folder / "calibration.png")
    found = {f"heldout/{name}": value for name, value in figures.items()}
    if names is None:
        bias = {"heldout/longer_chosen": longer_chosen(held), "heldout/longer_wins": longer_wins(held)}
        found |= {name: value for name, value in bias.items() if value is not None}
    return found


def _say(out: Path, figures: dict[str, Any], what: str) -> None:
    terminal = console()
    terminal.print(f"{out}: {what}, {figures['train']} trained on, {figures['heldout']} held out", highlight=False)
    for name, value in figures.items():
        if name.startswith("heldout/"):
            terminal.print(f"{name.removeprefix('heldout/'):>17}  {value:.4g}", highlight=False)

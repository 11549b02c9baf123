"""Preference pairs and labelled texts: the shapes of rows, and the rules."""

from __future__ import annotations

from typing import Any

import pytest

from raftune.errors import UserError
from raftune.preferences import Answered, Encoded, Labelled, Pair, dialogue, longer_chosen, longer_wins, parse, tidy

USER = {"role": "user", "content": "Hi"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pairs(*rows: dict[str, Any], **options: Any) -> Any:
    return parse([(f"row {at}", row) for at, row in enumerate(rows)], **options)


def test_a_dialogue_as_messages() -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nA list:\n\n1. a\n\nHuman: and?\n\nHuman: well?\n\nAssistant:"
    assert dialogue(text) == (
        USER,
        said("Hello.\n\nA list:\n\n1. a"),
        {"role": "user", "content": "and?\n\nwell?"},
        said(""),
    )
    for other in ("Human: Hi", "Hi\n\nHuman: Hi", "\n\nAssistant: Hi", "", "\n\nHuman Hi"):
        assert dialogue(other) is None


def test_each_shape_is_found_by_its_columns() -> None:
    found, counts = pairs(
        {"prompt": "Q: ", "chosen": "yes", "rejected": "no"},
        {"chosen": "The film was good", "rejected": "The film was gone"},
        {"chosen": [USER, said("a")], "rejected": [USER, said("b")]},
        {"prompt": [USER], "chosen": [said("a")], "rejected": [said("b")]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "no dialogue"},
        {"chosen": [USER], "rejected": [USER, said("b")]},
    )
    chat = Pair(Answered((USER,), "a"), Answered((USER,), "b"))
    assert found == [
        Pair(Answered("Q: ", "yes"), Answered("Q: ", "no")),
        Pair(Answered("The film was ", "good"), Answered("The film was ", "gone")),
        chat,
        chat,
        chat,
        Pair(Answered("", "\n\nHuman: Hi\n\nAssistant: a"), Answered("", "no dialogue")),
    ]
    assert counts == {"rows": 7, "no_answer": 1}
    as_text = pairs({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, dialogues=False)[0]
    assert as_text == [Pair(Answered("\n\nHuman: ", "a"), Answered("\n\nHuman: ", "b"))]
    labelled = pairs({"text": "x", "label": 1}, {"text": "y", "label": True}, {"text": "z", "label": "bad"})[0]
    assert labelled == [Labelled("x", "1"), Labelled("y", "1"), Labelled("z", "bad")]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([{"chosen": "a"}], "row 0: needs the columns chosen and rejected .* it has chosen"),
        ([{"chosen": "a", "rejected": [said("b")]}], "row 0: prompt, chosen and rejected are all texts"),
        ([{"text": "a", "label": 0.5}], "row 0: a label is a whole number or a name, not 0.5"),
        ([{"text": "a", "label": 0}, {"chosen": "a", "rejected": "b"}], "holds both"),
    ],
)
def test_bad_rows_are_named(rows: list[dict[str, Any]], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        pairs(*rows)


def test_what_falls_to_a_rule_is_counted() -> None:
    found, _ = pairs(
        {"prompt": "Q ", "chosen": "a", "rejected": "bb"},
        {"prompt": "Q", "chosen": " a", "rejected": " bb"},  # the same texts
        {"prompt": "Q ", "chosen": "bb", "rejected": "a"},  # a contradiction is no duplicate
        {"prompt": "Q ", "chosen": "a", "rejected": "a"},
        {"chosen": [USER, said(" ")], "rejected": [USER, said("b")]},
        {"prompt": "Q ", "chosen": "a", "rejected": "much too long"},
    )
    usable, counts = tidy(found, lambda side: list(str(side.prompt) + side.answer), 8)
    assert counts == {"empty": 1, "identical": 1, "duplicate": 1, "too_long": 1}
    assert [one.example for one in usable] == [found[0], found[2]]
    assert usable[0].ids == (tuple("Q a"), tuple("Q bb"))
    assert usable[0].group == usable[1].group  # one prompt


def test_the_length_bias_by_hand() -> None:
    pair = pairs({"chosen": "a", "rejected": "b"})[0][0]
    some = [Encoded(pair, (tuple(range(a)), tuple(range(b)))) for a, b in [(3, 1), (4, 1), (1, 2), (2, 2)]]
    assert longer_chosen(some) == pytest.approx(2 / 3)
    assert longer_wins(some) == pytest.approx(2.5 / 4)
    assert longer_chosen(some[3:]) is None

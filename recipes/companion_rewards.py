"""Parts of the reward of companion.yaml: how an answer to someone who failed an exam is put.

A composite of simple heuristics, and NOT a measure of empathy: each part counts a surface mark that kind answers of
this length often have (or lack), so each can be gamed, and a run must be read, not only plotted. What it is for: parts
that are quick, transparent, and spread the candidates of one prompt, so that there is something to rank.

Every part has TRL's signature, takes texts as well as chats, and gives a number for any text, the empty one too.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORD = re.compile(r"[A-Za-zÀ-ÿ]+(?:['’][A-Za-z]+)?")
YOU = re.compile(r"\b(?:you|your|yours|yourself)\b(?:['’](?:re|ve|ll|d)\b)?", re.IGNORECASE)
OWN_STORY = re.compile(r"\b(?:I|I['’](?:m|ve|d|ll)|my|me|myself|we|our|us)\b")
SYMPATHY = re.compile(  # the writer of the answer may say "I" here
    r"\bI(?:['’]m| am) (?:so |very |really |truly |deeply )*(?:sorry|here)\b|\bI (?:can )?(?:hear|understand|see)\b"
    r"|\bI can (?:only )?imagine\b|\btell me\b|\bI(?:['’]d| would) (?:like|love)\b|\bI wish\b",
    re.IGNORECASE,
)
VALIDATION = re.compile(  # not "sorry for the misunderstanding", the voice of a helpdesk
    r"\bsorry (?:to hear|(?:that )?(?:you|this|happened)\b|about (?:that|this|your))"
    r"|\b(?:that|this|it) (?:must (?:be|feel|have)|sounds?|hurts)\b|\b(?:sounds|feels?) like\b|\bmakes sense\b"
    r"|\bunderstand(?:able|ably)\b|\bI (?:can )?(?:hear|see|understand)\b|\b(?:it['’]s|that['’]s) (?:okay|ok)\b"
    r"|\b(?:normal|natural|okay|ok) to feel\b|\bno wonder\b|\bnot alone\b|\bI can(?: only)? imagine\b",
    re.IGNORECASE,
)
FEELING = re.compile(
    r"\b(?:hurts?|painful|hard|upset(?:ting)?|disappoint(?:ed|ing|ment)|frustrat(?:ed|ing|ion)|asham(?:ed|ing)"
    r"|shame|embarrass(?:ed|ing)|humiliat(?:ed|ing)|angry|anger|sad(?:ness)?|scar(?:ed|y)|afraid|anxious|anxiety"
    r"|tired|exhaust(?:ed|ing)|overwhelm(?:ed|ing)|lonely|relie(?:f|ved)|worried|worry|stress(?:ed|ful)|devastat(?:ed|ing)"
    r"|heartbreaking|discourag(?:ed|ing)|unfair|grief|numb|guilt(?:y)?|panic|proud|feelings?)\b",
    re.IGNORECASE,
)
LIST = re.compile(r"^[ \t]*(?:[-*•#]+|\d+[.)])\s|\*\*|\b[Ss]tep \d|(?:^|\s)\d\.\s", re.MULTILINE)
MACHINE = re.compile(
    r"\bas an? (?:AI|language model|assistant)\b|\bI(?:['’]m| am) (?:an AI|just an?|only an?|programmed)\b"
    r"|^\s*(?:dear|subject:|hi there, \[)|[\[\]{}<>|\\=_]|https?:|\b(?:best regards|sincerely)\b"
    r"|\bI (?:cannot|can['’]t) (?:assist|help)\b|\b(?:misunderstanding|confusion|inconvenience|your loss)\b"
    r"|\b(?:chatbot|AI|assist(?:ance|ed)?|please (?:specify|clarify))\b"
    r"|\b(?:the|your|this) (?:sentence|phrase|translation)\b",
    re.IGNORECASE,
)
CHEER = re.compile(  # to someone who failed
    r"\bcongratulations\b|\b(?:great|good|excellent|nice|amazing) (?:job|work|news|choice|question)\b"
    r"|\b(?:thrilled|excited|delighted|glad|happy) (?:to hear|that you|for you)\b"
    r"|\bthat['’]s (?:a )?(?:great|wonderful)\b",
    re.IGNORECASE,
)
ORDER = re.compile(
    r"\byou (?:really )?(?:should|must|need to|have to|ought to)\b"
    r"|\b(?:make sure|remember to|try to|it['’]?s (?:important|essential|crucial))\b",
    re.IGNORECASE,
)
LECTURE = {LIST: 0.5, MACHINE: 0.5, CHEER: 0.5}
CLOSING = "\"'”’)*\n "  # what may stand behind the last full stop


def speaks_to_you(completions: Sequence[Any], **_: Any) -> list[float]:
    """0 … 1: the share of "you" among the words, full at one in ten; less where the answer tells a story of its own."""
    return [
        _share(YOU, text, 0.1) * (1 - _share(OWN_STORY, SYMPATHY.sub(" ", text), 0.1)) for text in _texts(completions)
    ]


def acknowledges(completions: Sequence[Any], **_: Any) -> list[float]:
    """0 … 1: words for what the person feels among the first 30 words; a phrase that says "I hear it" counts most."""
    values = []
    for text in _texts(completions):
        start = _first(text, 30)
        values.append(0.6 * bool(VALIDATION.search(start)) + 0.4 * min(1.0, len(_distinct(FEELING, start)) / 2))
    return values


def invites(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 where the answer ends with a question to the person, 0.5 where it asks one before its end, else 0."""
    values = []
    for text in _texts(completions):
        asked = [bool(YOU.search(one)) for one in re.findall(r"[^.!?\n]+[.!?]*", text) if "?" in one]
        ends = text.rstrip(CLOSING).endswith("?")
        values.append(1.0 if ends and asked and asked[-1] else 0.5 if any(asked) else 0.0)
    return values


def no_lecture(completions: Sequence[Any], **_: Any) -> list[float]:
    """-1 … 0: lists and headings, the voice of a machine or a form letter, cheers, and every order after the first."""
    values = []
    for text in _texts(completions):
        marks = sum(weight for pattern, weight in LECTURE.items() if pattern.search(text))
        orders = max(0, len(ORDER.findall(text)) - 1) * 0.25
        values.append(-min(1.0, marks + orders))
    return values


def plain(completions: Sequence[Any], **_: Any) -> list[float]:
    """0 … 1: the share of words that people in companion.jsonl use themselves, 0 at 70 % and 1 at 95 %, times the
    share of three-word runs that come once. A small model strays into jargon, other languages and loops: this shows it.
    """
    values = []
    for text in _texts(completions):
        words = [word.lower().replace("’", "'") for word in WORD.findall(text)]
        known = sum(word in _vocabulary() for word in words) / len(words) if words else 0.0
        runs = list(zip(words, words[1:], words[2:], strict=False))
        fresh = len(set(runs)) / len(runs) if runs else 1.0
        values.append(min(1.0, max(0.0, (known - 0.7) / 0.25)) * fresh)
    return values


def brevity(completions: Sequence[Any], **_: Any) -> list[float]:
    """0 … 1: 15 to 55 words are full, fewer or more less; a third of that where the last sentence breaks off."""
    values = []
    for text in _texts(completions):
        words = len(WORD.findall(text))
        fits = min(1.0, words / 15, max(0.0, (110 - words) / 55))
        values.append(fits if text.rstrip(CLOSING).endswith((".", "!", "?", "…")) else fits / 3)
    return values


def _texts(completions: Sequence[Any]) -> list[str]:
    """A chat's completion is a list of messages, a text's the text."""
    return [
        one if isinstance(one, str) else " ".join(str(turn.get("content") or "") for turn in one) for one in completions
    ]


@functools.cache
def _vocabulary() -> frozenset[str]:
    text = Path(__file__).with_name("companion.jsonl").read_text(encoding="utf-8")
    turns = [turn["content"] for line in text.splitlines() for turn in json.loads(line)["prompt"]]
    return frozenset(word.lower().replace("’", "'") for turn in turns for word in WORD.findall(turn))


def _share(pattern: re.Pattern[str], text: str, full: float) -> float:
    """How much of the words the pattern takes, 1 at ``full`` and beyond."""
    words = len(WORD.findall(text))
    return min(1.0, len(pattern.findall(text)) / words / full) if words else 0.0


def _first(text: str, count: int) -> str:
    """As far as the word of that number."""
    for number, word in enumerate(WORD.finditer(text), start=1):
        if number == count:
            return text[: word.end()]
    return text


def _distinct(pattern: re.Pattern[str], text: str) -> set[str]:
    return {word.lower() for word in pattern.findall(text)}

"""Writes math.jsonl: word problems of one or two steps with small numbers, their answers worked in GSM8K's format.

    python recipes/make_math.py

The situations stand in math_situations.jsonl, written by hand. Each is a question and its worked solution. ``[a*b]``
in a solution is a step: it is written as GSM8K writes it, ``3*4=<<3*4=12>>12``, and its result is called ``x`` in what
follows. Numbers are drawn anew until every step is a whole number between 1 and ``LARGEST``. A test
(tests/test_recipes.py) works every answer out again.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

# How to answer, shown: told in words, the base model writes on without an answer
EXAMPLES = [
    {"role": role, "content": content}
    for role, content in (
        ("user", "A florist has 5 vases with 4 tulips each and sells 3 tulips. How many tulips are left?"),
        ("assistant", "In the vases are 5*4=20 tulips. Then 20-3=17 tulips are left.\n#### 17"),
        ("user", "A hiker carries 12 nuts and eats 5 of them. How many nuts are left?"),
        ("assistant", "There are 12-5=7 nuts left.\n#### 7"),
        ("user", "There are 4 swans on the lake. Then 9 more come. How many swans are there now?"),
        ("assistant", "Now there are 4+9=13 swans.\n#### 13"),
        ("user", "A tram has 6 wagons with 9 seats each. How many seats is that?"),
        ("assistant", "That is 6*9=54 seats.\n#### 54"),
    )
]
NAMES = (
    *("Ada", "Ben", "Carla", "Dina", "Emil", "Fatou", "Goran", "Hana", "Igor", "Jun"),
    *("Kofi", "Lena", "Mateo", "Nadia", "Omar", "Priya", "Rosa", "Sven", "Tara", "Yusuf"),
)
HERE = Path(__file__).parent
LARGEST = 100
EACH = {1: 12, 2: 4}  # problems of a situation, by its steps
STEP = re.compile(r"\[([^]]+)\]")
TERM = re.compile(r"[a-z]+|\d+|[-+*/]")


@dataclass(frozen=True)
class Situation:
    """``low`` and ``high`` bound the drawn numbers a, b, c; {who} and {friend} are two different names."""

    question: str
    solution: str
    low: int = 2
    high: int = 10


def worked(solution: str, numbers: dict[str, int]) -> tuple[str, list[int]]:
    """The solution with its steps written out, and their results; none where a step gives no whole number in range."""
    known, results = dict(numbers), []

    def write(step: re.Match[str]) -> str:
        terms = [str(known.get(term, term)) for term in TERM.findall(step[1])]
        result = calculate(terms)
        results.append(result)
        known["xyz"[len(results) - 1]] = result
        text = "".join(terms)
        return f"{text}=<<{text}={result}>>{result}"

    try:
        return STEP.sub(write, solution), results
    except ValueError:
        return "", []


def calculate(terms: list[str]) -> int:
    """``["3", "*", "4"]`` → 12, from left to right. ValueError if it leaves the whole numbers or the range."""
    result = int(terms[0])
    for sign, term in zip(terms[1::2], map(int, terms[2::2]), strict=True):
        if sign == "/" and result % term:
            raise ValueError("not a whole number")
        result = {"+": result + term, "-": result - term, "*": result * term, "/": result // term}[sign]
    if not 1 <= result <= LARGEST:
        raise ValueError("out of range")
    return result


def problem(situation: Situation, rng: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    while True:
        numbers = {name: rng.randint(situation.low, situation.high) for name in "abc"}
        solution, results = worked(situation.solution, numbers)
        if results:
            who, friend = rng.sample(NAMES, 2)
            words = {"who": who, "friend": friend, **numbers}
            return situation.question.format(**words), f"{solution.format(**words)}\n#### {results[-1]}"


def problems(seed: int = 0) -> list[dict[str, object]]:
    """The rows of math.jsonl: no question twice."""
    lines = (HERE / "math_situations.jsonl").read_text(encoding="utf-8").splitlines()
    rng, rows, seen = random.Random(seed), [], set()
    for place, situation in enumerate(Situation(**json.loads(line)) for line in lines):
        wanted = len(rows) + EACH[len(STEP.findall(situation.solution))]
        while len(rows) < wanted:
            question, answer = problem(situation, rng)
            if question in seen:
                continue
            seen.add(question)
            content = [*EXAMPLES, {"role": "user", "content": question}]
            rows.append({"id": f"math-{place:02}-{len(rows):03}", "prompt": content, "answer": answer})
    return rows


if __name__ == "__main__":
    lines = [json.dumps(row, ensure_ascii=False) for row in problems()]
    (HERE / "math.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

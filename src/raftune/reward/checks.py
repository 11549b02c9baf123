"""What a verifier asks of one output, in a process of its own (:mod:`.child`): this file is run, never imported.

It reads one JSON list a line and answers with one JSON value a line. Outputs are whatever a model wrote: where one
takes too long, or too much memory, the kernel ends this process and the verifier begins another. Nothing that a model
wrote is run as code. Only the standard library and the library that checks are needed here.
"""

import json
import logging
import re
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from functools import lru_cache, partial
from typing import Any

MEMORY = 2 << 30  # bytes of address space
GROUPED = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed")
COMMAND = re.compile(r"\\(text|mathrm|textbf)\s*\{[^}]*\}|\\[a-zA-Z]+")
MARK = "####"  # before the final answer in GSM8K (Cobbe et al. 2021, arXiv 2110.14168)


def math() -> Callable[..., bool]:
    """``(reference)``: has it an answer? ``(reference, output)``: is the output's final answer that one?"""
    from math_verify import parse, verify

    # Its own timeouts are Python signal handlers, which do not interrupt an integer power; the kernel's timer does
    read = partial(parse, fallback_mode="no_fallback", parsing_timeout=0)

    read("$1$")  # compiles its patterns, once

    @lru_cache(maxsize=64)
    def wanted(reference: str) -> list[Any]:
        return read(delimited(reference.rpartition(MARK)[2].strip()))

    def check(reference: str, output: str | None = None) -> bool:
        if output is None:
            return bool(wanted(reference))
        _, marked, last = output.rpartition(MARK)
        found = (read(last.strip().partition("\n")[0]) if marked else []) or read(output)
        return bool(found) and verify(wanted(reference), found, timeout_seconds=0)

    return check


def delimited(reference: str) -> str:
    """Bare LaTeX between dollars, where math-verify looks for it; numbers and sentences as they are."""
    number = reference.replace(",", "") if GROUPED.fullmatch(reference) else reference
    with suppress(InvalidOperation):
        value = Decimal(number)
        return format(value, "f") if value.is_finite() and abs(value.adjusted()) < 1000 else ""
    has_words = re.search("[^\\W\\d_]{2}", COMMAND.sub("", reference))
    return reference if has_words or DELIMITED.search(reference) else f"${reference}$"


def schema() -> Callable[..., bool]:
    """``(schema, output)``: is the output one JSON value that the schema (JSON Schema 2020-12) allows?"""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    @lru_cache(maxsize=1)
    def validator(text: str) -> Any:
        return Draft202012Validator(json.loads(text), registry=Registry())  # which fetches nothing

    def check(text: str, output: str) -> bool:
        try:
            return validator(text).is_valid(json.loads(output))
        except (ValueError, RecursionError):  # a number or a nesting that Python does not read
            return False

    return check


def main(name: str, seconds: float) -> None:
    logging.disable()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is doing
    with suppress(ValueError, OSError):  # not every system has such a limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    check = {"math": math, "schema": schema}[name]()
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of CPU: a busy machine changes no score
        answer = check(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

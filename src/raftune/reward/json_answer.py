"""Is the output JSON, and the JSON that was asked for? No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..types import Candidate, digest
from .child import Child
from .texts import each, need, texts_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class JsonReward:
    """1 where the whole output is one JSON value (RFC 8259: no NaN), alone or in one ```` ```json ```` fence, else 0.

    What is nested too deeply for Python's reader (about a thousand levels) has 0.
    """

    name: str = "json"

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        return [float(is_json(unfenced(text))) for text in texts_of(self.name, candidates)]


@dataclass(frozen=True)
class JsonSchemaReward:
    """1 where the output is JSON, as for :class:`JsonReward`, that ``schema`` (the text of a JSON Schema of the draft
    2020-12) allows, else 0. References out of the schema are refused, never fetched. Formats are not checked, as the
    draft has it. An output that is not judged within ``seconds`` of CPU time is not scored.
    """

    schema: str
    name: str = "json-schema"
    seconds: float = 5.0

    def __post_init__(self) -> None:
        need(self.name, "jsonschema", "jsonschema")
        check_schema(self.name, self.schema)

    @property
    def version(self) -> str:
        """Changes with the schema."""
        return digest(self.schema).hex()

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        texts_of(self.name, candidates)

        def answer(candidate: Candidate) -> bool | None:
            text = unfenced(candidate.output.text)
            return is_json(text) and child.ask(self.schema, text)

        with Child("schema", self.seconds) as child:
            return each(self.name, candidates, answer, self.seconds)


def unfenced(text: str) -> str:
    """What stands in a Markdown fence, if the text is one."""
    text = text.strip()
    head, newline, rest = text.partition("\n")
    if newline and head.rstrip().lower() in {"```", "```json"} and rest.endswith("```"):
        return rest.removesuffix("```").strip()
    return text


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse, parse_int=float)  # an int of a million digits takes its time
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def read_schema(path: Path) -> str:
    """The text of a schema's file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"reward json-schema: {path} cannot be read ({error})") from None


def check_schema(name: str, text: str) -> None:
    """UserError unless this is a schema of the draft 2020-12 that needs no other document."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    where = f"reward {name!r}: the schema"
    try:
        schema = json.loads(text)
        Draft202012Validator.check_schema(schema)
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    except SchemaError as error:
        raise UserError(f"{where} is wrong at {error.json_path}: {error.message}") from None
    declared = schema.get("$schema", DIALECT) if isinstance(schema, dict) else DIALECT
    if declared.removesuffix("#") != DIALECT:
        raise UserError(f"{where} declares {declared}; write it in the draft 2020-12, {DIALECT}")
    root = DRAFT202012.create_resource(schema)
    pending = [(Registry().resolver_with_root(root), root)]
    while pending:
        resolver, resource = pending.pop()
        contents = resource.contents if isinstance(resource.contents, dict) else {}
        for reference in (contents.get("$ref"), contents.get("$dynamicRef")):
            try:
                _ = reference is None or resolver.lookup(reference)
            except Unresolvable:
                raise UserError(f"{where} refers to {reference!r}, which is not in it; put it under $defs") from None
        pending += [(resolver.in_subresource(inner), inner) for inner in resource.subresources()]

"""Record: what lies in a run directory, read for a person while the run may go on. Nothing is locked or written.

Rounds that are not committed and tables that cannot be read are left out; what was left out is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .. import pick
from ..columns import Array
from ..errors import UserError
from ..figures import MEAN, OWN, RESERVED, watched
from ..files import read_json
from ..ledger import ScoredTable
from ..rows import opened
from ..store import best_of
from ..types import Scored, seed_of

HELD = "heldout/"
REWARD = f"{HELD}{MEAN}"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """A run directory. ``missing``: what could not be read, a line each."""

    folder: Path
    missing: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> Record:
        """UserError where the folder holds no run, or none that has begun."""
        if not (folder / "rounds").is_dir():
            raise UserError(f"{folder}: holds no rounds; give a run directory")
        record = cls(folder)
        if not record.rows:
            raise UserError(f"{folder}: no round has figures yet; wait for the first evaluation")
        return record

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def rows(self) -> list[Row]:
        """The figures of each round, round 0 first."""
        found = []
        for path in sorted(self.folder.glob("rounds/*/metrics.json")):
            with self._tolerated():
                found.append(read_json(path))
        return [row for row in found if isinstance(row, Mapping) and "round" in row]

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """As it was written into the run; empty where it cannot be read."""
        with self._tolerated():
            loaded = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
            return loaded if isinstance(loaded, Mapping) else {}
        return {}

    @property
    def last(self) -> int:
        return self.rows[-1]["round"]

    @property
    def best(self) -> int | None:
        """The round with the highest held-out reward; None where none was measured."""
        return best_of(self.rows)

    def row(self, number: int) -> Row:
        return next((row for row in self.rows if row["round"] == number), {})

    def series(self, figure: str) -> tuple[list[int], list[float]]:
        """The rounds in which a figure was measured, and what it was."""
        known = [row for row in self.rows if isinstance(row.get(figure), int | float)]
        return [row["round"] for row in known], [row[figure] for row in known]

    def figures(self, prefix: str) -> list[str]:
        """The figures whose name begins so, in order of first appearance."""
        return list(dict.fromkeys(key for row in self.rows for key in row if key.startswith(prefix)))

    @property
    def monitors(self) -> list[str]:
        """The figures of what only watches: held out, not a run's own, no standard error of another."""
        said = {key.removeprefix(HELD): key for key in self.figures(HELD) if self.series(key)[0]}
        names = [name for name in said if "/" not in name and not OWN.fullmatch(name)]
        return [said[name] for name in names if name.removesuffix("_se") not in {*names} - {name}]

    @property
    def watched(self) -> list[str]:
        """The figures that a person wants to see besides the held-out reward."""
        sets = [key.removesuffix(f"/{MEAN}") for key in self.figures("") if key.endswith(f"/{MEAN}")]
        further = [name for name in sets if name not in RESERVED and "/" not in name]
        keys = watched([key.removeprefix(HELD) for key in self.monitors], further)
        return [key for key in keys if self.series(key)[0]]

    @cached_property
    def modality(self) -> pick.Modality:
        tables = sorted(self.folder.glob("rounds/*/*.parquet"), key=lambda path: path.stem != "heldout")
        held = [path for path in tables if path.stem in {"heldout", "scored"}]
        return pick.modality(self.recipe.get("modality") or (pick.modality_in(held[0]) if held else "text"))

    def table(self, number: int, name: str) -> ScoredTable | None:
        """Candidates of a round: ``scored``, ``chosen`` or ``heldout``; None where they are not there or damaged."""
        path = self.folder / "rounds" / f"{number:04d}" / f"{name}.parquet"
        if not path.exists():
            return None
        with self._tolerated():
            return ScoredTable([path], self.modality.codec)
        return None

    def rewards(self, number: int) -> Array:
        """Of the candidates of a round that were scored."""
        path = self.folder / "rounds" / f"{number:04d}" / "scored.parquet"
        if path.exists():
            with self._tolerated(), opened(path, ["reward"]) as file:
                return file.read(columns=["reward"])["reward"].drop_null().to_numpy()
        return np.empty(0)

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        """Within this block what cannot be read is noted and left out: a report of the rest is worth having."""
        try:
            yield
        except (UserError, OSError, ValueError, yaml.YAMLError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if line not in self.missing:
                self.missing.append(line)

    def before_and_after(self, number: int, prompts: int, each: int = 1) -> list[list[tuple[Scored, Scored]]]:
        """Held-out outputs of round 0 and of round ``number``, of the same prompts and draws: of ``prompts`` prompts,
        picked by their ids and not by how they look, ``each`` of their outputs."""
        before, after = self.table(0, "heldout"), self.table(number, "heldout")
        if before is None or after is None:
            return []
        places = [_places(one) for one in (before, after)]
        shared = sorted(places[0].keys() & places[1].keys())
        ids = sorted({name for name, _ in shared}, key=lambda name: seed_of("show", name))[:prompts]
        keys = [key for name in ids for key in [one for one in shared if one[0] == name][:each]]
        sides = [one.take(np.array([at[key] for key in keys])) for one, at in zip((before, after), places, strict=True)]
        found: dict[str, list[tuple[Scored, Scored]]] = {}
        for pair in zip(*sides, strict=True):
            found.setdefault(pair[0].candidate.prompt.id, []).append(pair)
        return list(found.values())

    def extremes(self, number: int, count: int) -> tuple[list[Scored], list[Scored]]:
        """The candidates of a round with the highest rewards and those with the lowest, of different prompts."""
        table = self.table(number, "scored")
        if table is None or not len(table):
            return [], []
        columns = table.columns
        known = np.flatnonzero(columns.scored)
        order = known[np.argsort(-columns.reward[known], kind="stable")]
        sides = []
        for some in (order, order[::-1]):
            seen: dict[int, int] = {}
            for row in some.tolist():
                seen.setdefault(int(columns.keys.prompt[row]), row)
                if len(seen) == count:
                    break
            sides.append(list(table.take(np.array([*seen.values()]))) if seen else [])
        return sides[0], sides[1]


def _places(table: ScoredTable) -> dict[tuple[str, int], int]:
    keys = table.candidates.keys
    pairs = zip(keys.prompt.tolist(), keys.index.tolist(), strict=True)
    return {(keys.id_of(prompt), index): row for row, (prompt, index) in enumerate(pairs)}


def about(recipe: Mapping[str, Any]) -> dict[str, str]:
    """What was run, in a few words by name; what the recipe does not say is not there."""
    sample, prompts, tune = (recipe.get(key) or {} for key in ("sample", "prompts", "tune"))
    rewards = [f"{one.get('weight', 1):g} × {one.get('name') or one.get('use')}" for one in recipe.get("reward") or ()]
    told = {
        "model": recipe.get("model"),
        "prompts": prompts.get("path"),
        "reward": " + ".join(rewards).replace("1 × ", ""),
        "a round": f"{sample.get('prompts_per_round')} prompts × {sample.get('k')} candidates" if sample else None,
        "rule": (recipe.get("select") or {}).get("rule"),
        "β": recipe.get("kl_coefficient") or None,
        "learning rate": tune.get("learning_rate"),
        "seed": recipe.get("seed"),
    }
    return {name: str(value) for name, value in told.items() if value not in (None, "")}

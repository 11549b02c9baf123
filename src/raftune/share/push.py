"""A run's policy and data on the Hub: folders made ready beside the run, then uploaded through ``HfApi``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import replacing_folder
from ..report.record import Record
from .export import Report, Request, dataset
from .policy import lay_out, policy_of

READY = "hub"  # in the run directory: what is, or would be, uploaded
SHARED = ("sft", "pairs", "imagefolder")  # of a run's formats those that make a data set


@dataclass(frozen=True)
class Parcel:
    """A folder for a repository. ``notes``: what somebody should know before it is uploaded, a line each."""

    folder: Path
    kind: str
    notes: Sequence[str] = ()

    @property
    def files(self) -> list[tuple[str, int]]:
        """Their names and sizes in bytes."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in found]


def model(record: Record, number: int | None = None, merge: bool = False, base: str | None = None) -> Parcel:
    """The policy of a round, ready to be uploaded; by default of the best one."""
    chosen, policy = policy_of(record, number)
    folder = record.folder / READY / "model"
    with replacing_folder(folder) as part:
        notes = lay_out(record, chosen, policy, part, merge, base)
    return Parcel(folder, "model", notes)


def data(record: Record, numbers: Sequence[int] = ()) -> Parcel:
    """What was chosen and, of texts, the pairs, ready to be uploaded; of all committed rounds, or of some."""
    folder, report = record.folder / READY / "dataset", Report()
    kinds = [kind for kind in record.modality.formats if kind in SHARED]
    with replacing_folder(folder) as part:
        dataset(record, part, kinds, Request(numbers), report, record.name)
    return Parcel(folder, "dataset", [*record.missing, *report.left_out])


def check_name(name: str) -> None:
    """UserError where the Hub takes no repository of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--to {name}: {str(error).splitlines()[0]}") from None


def upload(
    parcel: Parcel,
    name: str,
    private: bool | None = None,
    token: str | None = None,
    message: str = "RAFT",
    **options: Any,
) -> str:
    """Create the repository where there is none, and commit the folder; its address. ``options``: of
    ``HfApi.upload_folder``. Nothing is deleted there. UserError where the Hub says no, or cannot be reached."""
    from huggingface_hub import HfApi

    try:
        hub = HfApi(token=token)
        place = hub.create_repo(name, repo_type=parcel.kind, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=place.repo_id,
            repo_type=parcel.kind,
            folder_path=parcel.folder,
            commit_message=message,
            **options,
        )
    except Exception as error:  # the Hub has many ways to say no
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"push: {name}: {line}; what was to be uploaded lies in {parcel.folder} (log in with `hf auth login`, "
            "or set HF_TOKEN; without a network: HF_HUB_OFFLINE, HF_ENDPOINT)"
        ) from error
    return str(place)

"""What a user may write: a recipe, strict and frozen; one class a modality. No torch.

Paths in a recipe are looked for beside the recipe, then in the working directory; ``out`` is relative to the latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from .sampling import ImageSampleConfig, SampleConfig, TextSampleConfig
from .serving import HOW_SERVED
from .sources import HOW_ASKED
from .strict import Strict


class PromptsConfig(Strict, frozen=True):
    """Where prompts come from. ``path``: .jsonl, .parquet or a Hub dataset. ``disjoint: false`` trains on held-out
    prompts too, where the task is one prompt and what is held out is the noise."""

    path: str
    column: str = "prompt"
    split: str = "train"
    name: str | None = None
    heldout: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | str = 0.1
    max_tokens: int = Field(default=1024, ge=1)
    disjoint: bool = True


class RewardConfig(Strict, frozen=True):
    """One part of the reward. ``use``: ``module:function``, ``path.py:function`` or one of ours (docs/rewards.md).

    ``label``: for ``classifier`` the class that is wanted; for ``image-classifier`` and ``correct`` the column of the
    prompts that names it (``label`` by default). ``elsewhere``: this function asks another process or machine, so a
    shard is scored while the next one is sampled.
    """

    use: str
    name: str | None = None
    weight: float = 1.0
    normalise: Literal["none", "zscore"] = "none"
    label: str | None = None
    elsewhere: bool = False


class SelectConfig(Strict, frozen=True):
    """``floor``: what scores below it is never chosen; ``buffer``: so many earlier rounds' winners are learned from
    again."""

    rule: str = "best"
    skip_tied: bool = False
    floor: float | None = None
    buffer: int = Field(default=0, ge=0)


class FiltersConfig(Strict, frozen=True):
    """What an output must be to be ranked (:class:`raftune.filters.Filters`); ``length`` is in words."""

    finished: bool = False
    repetition: float | None = Field(default=None, ge=0, le=1)
    length: tuple[int, int | None] | None = None
    deduplicate: bool = False
    regex: str | None = None
    without: str | None = None


class TextSelectConfig(SelectConfig, frozen=True):
    filters: FiltersConfig | None = None


class LoraConfig(Strict, frozen=True):
    r: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | None = None


class TuneConfig(Strict, frozen=True):
    """``optimizer_bits``: of AdamW's moments; 8 needs raftune[adamw-8bit]."""

    learning_rate: float = Field(default=2e-5, gt=0)
    batch_size: int = Field(default=8, ge=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Literal["reset", "carry"] = "reset"
    optimizer_bits: Literal[32, 8] = 32
    gradient_checkpointing: bool = False
    save_steps: int = Field(default=100, ge=1)
    backend: str


class TextTuneConfig(TuneConfig, frozen=True):
    epochs: int = Field(default=1, ge=1)
    batch_tokens: int = Field(default=4096, ge=1)
    lora: LoraConfig | None = None
    backend: str = "text"


class ImageTuneConfig(TuneConfig, frozen=True):
    """``steps`` of the optimiser a round, but at most ``max_epochs`` passes over the chosen. ``lora: null`` tunes the
    whole UNet or transformer. ``snr_gamma``: min-SNR weighting; null for the plain loss.
    ``caption_dropout``: share learned without a prompt, for guidance."""

    steps: int = Field(default=100, ge=1)
    max_epochs: int = Field(default=10, ge=1)
    batch_rows: int | None = Field(default=None, ge=1)
    snr_gamma: float | None = Field(default=5.0, gt=0)
    caption_dropout: float = Field(default=0.0, ge=0, lt=1)
    lora: LoraConfig | None = LoraConfig(alpha=16)  # alpha = r: the same strength where only the weights are read
    backend: str = "image"


class SetConfig(Strict, frozen=True):
    """Further prompts to evaluate on. ``path`` None: the held-out ones; ``sample``: what is drawn otherwise there."""

    path: str | None = None
    k: int = Field(default=1, ge=1)
    sample: dict[str, Any] = Field(default_factory=dict)


def _listed(value: Any) -> Any:
    """``vader``, ``{use: vader}`` and ``[vader]`` all mean one reward."""
    items = value if isinstance(value, list | tuple) else [value]
    return tuple({"use": item} if isinstance(item, str) else item for item in items)


Rewards = Annotated[tuple[RewardConfig, ...], BeforeValidator(_listed)]


class EvaluateConfig(Strict, frozen=True):
    """``k`` outputs per held-out prompt, drawn as in training; ``patience``: rounds without a better reward there;
    ``monitor``: scorers that only watch and never choose; ``reference``: the prompts' column of reference answers,
    where there is one; ``also``: further prompts by name (figures ``<name>/…``)."""

    k: int = Field(default=1, ge=1)
    every: int = Field(default=1, ge=1)
    patience: int | None = Field(default=None, ge=1)
    monitor: Rewards = ()
    reference: str = "reference"
    also: dict[str, SetConfig] = Field(default_factory=dict)


class AlarmsConfig(Strict, frozen=True):
    """Beyond what a round raises an alarm; see :class:`raftune.alarms.Limits`."""

    diversity: float = Field(default=0.6, ge=0, le=1)
    length: float = Field(default=1.5, gt=1)
    kl: float = Field(default=0.1, gt=0)
    errors: float = Field(default=2.0, ge=0)


class TrackConfig(Strict, frozen=True):
    """An experiment tracker that is told of every round: ``tensorboard``, ``trackio``, ``wandb``, ``mlflow``, or a
    class of Accelerate's interface, ``module:Class`` (docs/tracking.md).

    ``project``: under which runs stand together, ``raftune`` by default; ``name``: of this run, by default that of its
    directory; ``samples``: how many held-out prompts with their answers it is shown; ``options``: of its own start.
    """

    use: str
    project: str | None = None
    name: str | None = None
    samples: int = Field(default=8, ge=0)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_these(self) -> Self:
        if self.use == "tensorboard" and (self.project or self.name):
            raise ValueError("tensorboard has no project and no name: its files lie in the run directory")
        if ":" in self.use and self.name:
            raise ValueError("name: a class of one's own gets it among its options")
        return self

    @property
    def key(self) -> str:
        """What it is noted as: a tracker with two projects is two."""
        return self.use if self.project is None else f"{self.use} {self.project}"


def _told_apart(value: tuple[TrackConfig, ...]) -> tuple[TrackConfig, ...]:
    if len({one.key for one in value}) < len(value):
        raise ValueError("names one tracker twice; give each its own project")
    return value


Trackers = Annotated[tuple[TrackConfig, ...], BeforeValidator(_listed), AfterValidator(_told_apart)]


class Recipe(Strict, frozen=True):
    """A whole run. ``out``, ``keep``, ``report`` and ``track`` may differ when a run is resumed, ``rounds``,
    ``patience``, ``alarms`` too. ``kl_coefficient``: β. Candidates are ranked by r - β·log(p/p0); held-out answers have
    r. ``report``: write report.html after every round; ``track``: the experiment trackers that hear of it."""

    modality: str
    model: str
    prompts: PromptsConfig
    reward: Annotated[Rewards, Field(min_length=1)]
    sample: SampleConfig
    select: SelectConfig = SelectConfig()
    kl_coefficient: float = Field(default=0.0, ge=0)
    tune: TuneConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    rounds: int = Field(default=5, ge=1)
    seed: int = 0
    out: str | None = None
    keep: Literal["best", "all"] = "best"
    report: bool = True
    track: Trackers = ()

    @field_validator("prompts", mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @property
    def settings(self) -> dict[str, Any]:
        """What must not change between the sessions of a run, flat."""
        free = {
            "out",
            "keep",
            "report",
            "rounds",
            "evaluate.patience",
            *(f"alarms.{name}" for name in AlarmsConfig.model_fields),
        }
        settings = flatten(self.model_dump(mode="json", exclude={"track"}))
        how = (HOW_ASKED, HOW_SERVED)
        return {k: value for k, value in settings.items() if k not in free and not any(h.fullmatch(k) for h in how)}


class TextRecipe(Recipe, frozen=True):
    modality: Literal["text"] = "text"
    sample: TextSampleConfig = TextSampleConfig()
    select: TextSelectConfig = TextSelectConfig()
    tune: TextTuneConfig = TextTuneConfig()


class ImageRecipe(Recipe, frozen=True):
    modality: Literal["image"] = "image"
    sample: ImageSampleConfig = ImageSampleConfig()
    tune: ImageTuneConfig = ImageTuneConfig()

    @field_validator("kl_coefficient", mode="after")
    @classmethod
    def _no_kl(cls, beta: float) -> float:
        if beta:
            raise ValueError("pictures have no log-probabilities; leave it out")
        return beta


RECIPES: dict[str, type[Recipe]] = {"text": TextRecipe, "image": ImageRecipe}


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` → ``{"a.b": 1}``; lists are numbered."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{name}.")
        elif isinstance(inner, list) and inner and isinstance(inner[0], Mapping):
            flat |= flatten({str(place): item for place, item in enumerate(inner)}, f"{name}.")
        else:
            flat[name] = inner
    return flat

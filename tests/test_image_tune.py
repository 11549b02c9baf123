"""The image learner against the formulas, a textbook AdamW, and an undisturbed run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from raftune.errors import UserError
from raftune.families import family_of
from raftune.files import FIGURES, read_json
from raftune.picture import Picture
from raftune.pipelines import LORA
from raftune.sample.image import ImageSampler
from raftune.tune import image as learning
from raftune.tune.image import ImageLearner
from raftune.tune.lesson import encode
from raftune.tune.lora import Lora
from raftune.tune.session import Session
from raftune.types import Candidate, Prompt, Scored, seed_of

PipelineOf = Callable[..., Path]
State = dict[str, torch.Tensor]
TEXTS = ["a red seven", "a blue circle upon a hill"]
SIZES = [(16, 16), (16, 16), (24, 8), (16, 16), (16, 16), (24, 8)]  # pictures of two shapes


def noise(seed: int, size: tuple[int, int] = (16, 16)) -> PIL.Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize(size)


def chosen_of(count: int = 6, texts: Sequence[str] = TEXTS, first: int = 0) -> list[Scored]:
    return [
        Scored(Candidate(Prompt(f"p{i}", texts[i % len(texts)]), 0, Picture.of(noise(first + i, SIZES[i % 6]))), 1.0)
        for i in range(count)
    ]


def denoiser(folder: Path) -> State:
    (file,) = [*folder.glob("unet/*.safetensors"), *folder.glob("transformer/*.safetensors")]
    return load_file(file)


def distance(one: State, other: State) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def latents_of(pipe: Any, picture: Picture) -> torch.Tensor:
    """One picture by the library's VAE: 1 C H W."""
    pixels = torch.from_numpy(np.asarray(picture.image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    config = pipe.vae.config
    with torch.no_grad():
        return (pipe.vae.encode(pixels).latent_dist.mode() - (config.shift_factor or 0)) * config.scaling_factor


def alphas_cumprod() -> torch.Tensor:
    """The scaled linear noise of the tiny pipeline's scheduler, from Ho et al. and Rombach et al."""
    return torch.cumprod(1 - torch.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2, 0)


def diffusion_loss(pipe: Any, latents: Any, noised_by: Any, drawn: torch.Generator, text: Any, gamma: Any) -> Any:
    """One picture's: α and σ of its time, the prediction's target, min-SNR weights (arXiv 2303.09556, section 3.4)."""
    time = torch.randint(0, 1000, (1,), generator=drawn)
    alpha, sigma = alphas_cumprod()[time].sqrt(), (1 - alphas_cumprod()[time]).sqrt()
    kind, snr = pipe.scheduler.config.prediction_type, (alpha / sigma).square()
    target = {
        "epsilon": noised_by,
        "v_prediction": alpha * noised_by - sigma * latents,
        "sample": latents,
    }[kind]
    capped = snr if gamma is None else torch.minimum(snr, torch.tensor(gamma))
    weight = {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[kind]
    answer = pipe.unet(alpha * latents + sigma * noised_by, time, text["prompt_embeds"]).sample
    return (1.0 if gamma is None else weight) * torch.nn.functional.mse_loss(answer, target)


def flow_loss(pipe: Any, latents: Any, noised_by: Any, drawn: torch.Generator, text: Any, _gamma: Any) -> Any:
    """One picture's: a logit-normal place, the scheduler's shift of 3, the line's velocity (SD3, 2403.03206)."""
    place = (torch.sigmoid(torch.normal(0.0, 1.0, (1,), generator=drawn)) * 1000).long()
    even = (1000 - place) / 1000
    sigma = 3 * even / (1 + 2 * even)
    answer = pipe.transformer(
        hidden_states=(1 - sigma) * latents + sigma * noised_by,
        timestep=1000 * sigma,
        encoder_hidden_states=text["prompt_embeds"],
        pooled_projections=text["pooled_prompt_embeds"],
    ).sample
    return torch.nn.functional.mse_loss(answer, noised_by - latents)


def textbook(folder: Path, chosen: list[Scored], steps: list[list[int]], learner: ImageLearner) -> State:
    """One picture at a time: gradients of the step's mean loss, clipped at 1, AdamW, linear decay. Seed (0, 1)."""
    pipe: Any = DiffusionPipeline.from_pretrained(folder)
    flow = hasattr(pipe, "transformer")
    model, loss_of = (pipe.transformer, flow_loss) if flow else (pipe.unet, diffusion_loss)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=learner.learning_rate, weight_decay=0.0)
    for number, rows in enumerate(steps):
        optimizer.param_groups[0]["lr"] = learner.learning_rate * (1 - number / len(steps))
        for row in rows:
            candidate, drawn = chosen[row].candidate, torch.Generator().manual_seed(seed_of("noise", 0, 1, number, row))
            latents = latents_of(pipe, candidate.output)
            noised_by = torch.randn(latents[0].shape, generator=drawn)[None]
            with torch.no_grad():
                prompt = {"prompt": candidate.prompt.content, "do_classifier_free_guidance": False}
                more = {"prompt_2": None, "prompt_3": None} if flow else {"device": "cpu", "num_images_per_prompt": 1}
                embedded = pipe.encode_prompt(**prompt, **more)
            text = {"prompt_embeds": embedded[0]} | ({"pooled_prompt_embeds": embedded[2]} if flow else {})
            (loss_of(pipe, latents, noised_by, drawn, text, learner.snr_gamma) / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


TEXTBOOK = [
    *((prediction, gamma) for prediction in ("epsilon", "v_prediction", "sample") for gamma in (None, 5.0)),
    ("flow", 5.0),
]


@pytest.mark.parametrize(("prediction", "gamma"), TEXTBOOK)
def test_tuning_is_the_textbooks(prediction: str, gamma: float | None, pipeline_of: PipelineOf, tmp_path: Path) -> None:
    """However a step is cut for memory, the weights come out as from single pictures."""
    folder = pipeline_of("sd3") if prediction == "flow" else pipeline_of("sd", prediction=prediction)
    chosen = chosen_of()
    learner = ImageLearner(learning_rate=1e-3, steps=5, batch_size=4, snr_gamma=gamma, lora=None)
    steps = learner.order(6, (0, 1))
    assert [len(step) for step in steps] == [4, 2, 4, 2, 4]
    wanted, before = textbook(folder, chosen, steps, learner), denoiser(folder)
    # A key's bias moves all scores of a query alike, which softmax does not see: its gradient is rounding alone
    felt = [name for name in wanted if not name.endswith(("to_k.bias", "add_k_proj.bias"))]
    for batch_rows in (1, 2, None) if gamma else (None,):
        out = replace(learner, batch_rows=batch_rows).tune(folder, chosen, tmp_path / str(batch_rows) / "p", (0, 1))
        found = denoiser(Path(out))
        apart = torch.cat([(found[name] - wanted[name]).abs().flatten() for name in felt])
        assert (apart > 2e-5).sum() <= 3  # where a gradient is all but zero, Adam divides rounding by rounding
        assert apart.max() < 1e-3
        assert distance(found, before) > 1e-3


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux", "dit"])
def test_the_denoiser_is_asked_as_its_pipeline_asks_it(kind: str, pipeline_of: PipelineOf) -> None:
    """What the bare pipeline gives its denoiser and gets from it, for pictures that are not square, against ours."""
    pipe: Any = DiffusionPipeline.from_pretrained(pipeline_of(kind))
    pipe.set_progress_bar_config(disable=True)
    (name,) = {"unet", "transformer"} & pipe.components.keys()
    calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def seen(_module: Any, given: tuple[Any, ...], named: dict[str, Any], answer: Any) -> None:
        sample = given[0] if given else named["hidden_states"]
        calls.append((sample, named["timestep"] if "timestep" in named else given[1], answer[0]))

    hook = getattr(pipe, name).register_forward_hook(seen, with_kwargs=True)
    size = {} if kind == "dit" else {"height": 16, "width": 24}
    texts, asked = (["hen"], {"class_labels": [7]}) if kind == "dit" else (TEXTS[:1], {"prompt": TEXTS[0]})
    guidance = 3.5 if kind == "flux" else 1.0  # Flux is told, the others then run without
    pipe(**asked, **size, guidance_scale=guidance, num_inference_steps=3, generator=torch.Generator().manual_seed(0))
    hook.remove()
    family = family_of(type(pipe))
    assert family is not None
    assert len(calls) == 3
    conditions = family.embed(pipe, texts, guided=False)
    for noisy, time, wanted in calls:
        if kind == "flux":
            noisy, wanted = (pipe._unpack_latents(packed, 16, 24, 2) for packed in (noisy, wanted))
            time = time * 1000
        with torch.no_grad():
            found = family.predict(getattr(pipe, name), noisy, time.reshape(-1), conditions, 2)
        assert found.shape == noisy.shape
        torch.testing.assert_close(found, wanted[:, :4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["sd", "sd3", "flux"])
def test_latents_are_the_vaes_modes(kind: str, pipeline_of: PipelineOf) -> None:
    """Shifted and scaled, pictures of two shapes in their places; nothing is drawn."""
    pipe: Any = DiffusionPipeline.from_pretrained(pipeline_of(kind))
    pictures = [one.candidate.output for one in chosen_of()]
    found = encode(pipe.vae, pictures)
    for one, picture in zip(found, pictures, strict=True):
        wanted = latents_of(pipe, picture)[0]
        assert one.shape == (4, picture.height // 2, picture.width // 2)
        torch.testing.assert_close(one, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_encoders_are_gone_before_the_denoiser_comes(
    kind: str, pipeline_of: PipelineOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ImageSampler(steps=1).sample(pipeline_of(kind), [Prompt("p", "x")], 1, (0,))  # a pipeline is resident
    heavy = (
        transformers.PreTrainedModel,
        diffusers.AutoencoderKL,
        diffusers.UNet2DConditionModel,
        diffusers.SD3Transformer2DModel,
    )
    there: list[list[str]] = []
    load_denoiser, prepare = learning.load_denoiser, learning.prepare

    def named() -> list[str]:
        gc.collect()
        return sorted(type(one).__name__ for one in gc.get_objects() if issubclass(type(one), heavy))

    def preparing(*given: Any) -> Any:
        there.append(named())
        return prepare(*given)

    def loading(*given: Any) -> Any:
        there.append(named())
        loaded = load_denoiser(*given)
        there.append(named())
        return loaded

    monkeypatch.setattr(learning, "prepare", preparing)
    monkeypatch.setattr(learning, "load_denoiser", loading)
    ImageLearner(steps=1).tune(pipeline_of(kind), chosen_of(2), tmp_path / "policy", (0,))
    assert there[:2] == [[], []]
    assert there[2] == ["UNet2DConditionModel" if kind == "sd" else "SD3Transformer2DModel"]


@pytest.mark.parametrize(
    ("pictures", "batch", "steps", "epochs"), [(6, 4, 100, 3), (6, 4, 5, 9), (7, 8, 3, 9), (1, 1, 4, 2)]
)
def test_the_order_of_the_pictures(pictures: int, batch: int, steps: int, epochs: int) -> None:
    """Every picture once a pass; as many steps as were asked for, but no more than so many passes."""
    learner = ImageLearner(batch_size=batch, steps=steps, max_epochs=epochs)
    order = learner.order(pictures, (0, 1))
    a_pass = -(-pictures // batch)
    assert len(order) == min(steps, epochs * a_pass)
    assert max(len(step) for step in order) <= batch
    for start in range(0, len(order) - a_pass + 1, a_pass):
        assert sorted(row for step in order[start : start + a_pass] for row in step) == list(range(pictures))
    assert order == learner.order(pictures, (0, 1))
    if pictures == 6:
        assert order != learner.order(pictures, (0, 2))
        assert order[:2] != order[2:4]


@pytest.mark.parametrize("lora", [None, Lora(r=4)], ids=["full", "lora"])
def test_the_loss_falls_and_figures_are_written(
    lora: Lora | None, pipeline_of: PipelineOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    apply = Session._apply
    monkeypatch.setattr(Session, "_apply", lambda self, loss: (losses.append(loss), apply(self, loss)))
    learner = ImageLearner(
        learning_rate=1e-2 if lora is None else 3e-2, steps=40, max_epochs=40, batch_size=6, lora=lora
    )
    out = learner.tune(pipeline_of(), chosen_of(), tmp_path / "policy", (0, 1))
    assert len(losses) == 40
    assert sum(losses[-10:]) / 10 < (0.8 if lora is None else 0.9) * sum(losses[:5]) / 5
    figures = read_json(Path(out) / FIGURES)
    assert (figures["loss"], figures["steps"], figures["pictures"]) == (losses[-1], 40, 240)
    assert figures["pictures_per_s"] > 0


class Stopped(Exception):
    pass


def dying(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """From now on a tuning dies after so many steps."""
    apply, done = Session._apply, []

    def dies(self: Session, loss: float) -> None:
        if len(done) == step:
            monkeypatch.setattr(Session, "_apply", apply)
            raise Stopped
        done.append(1)
        apply(self, loss)

    monkeypatch.setattr(Session, "_apply", dies)


def tuned(folder: Path) -> State:
    return load_file(folder / LORA) if (folder / LORA).exists() else denoiser(folder)


@pytest.mark.parametrize("lora", [None, Lora(r=4, dropout=0.1)], ids=["full", "lora"])
@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_resumed_tuning_ends_with_the_same_weights(
    stop_at: int, lora: Lora | None, pipeline_of: PipelineOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = ImageLearner(learning_rate=1e-3, steps=5, batch_size=2, save_steps=2, lora=lora)
    undisturbed = learner.tune(pipeline_of(), chosen_of(), tmp_path / "a" / "policy", (0, 1))
    dying(monkeypatch, stop_at)
    with pytest.raises(Stopped):
        learner.tune(pipeline_of(), chosen_of(), tmp_path / "b" / "policy", (0, 1))
    assert not (tmp_path / "b" / "policy").exists()
    assert (tmp_path / "b" / "policy.tuning").exists() == (stop_at > 1)
    torch.manual_seed(99)  # another session: the global generator stands elsewhere
    resumed = learner.tune(pipeline_of(), chosen_of(), tmp_path / "b" / "policy", (0, 1))
    assert not (tmp_path / "b" / "policy.tuning").exists()
    assert distance(tuned(Path(undisturbed)), tuned(Path(resumed))) == 0
    assert ("pictures_per_s" in read_json(Path(resumed) / FIGURES)) == (stop_at == 1)


@pytest.mark.parametrize("other", ["pictures", "prompts", "learning rate", "seed"])
def test_the_state_of_another_tuning_is_not_used(
    other: str, pipeline_of: PipelineOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = ImageLearner(learning_rate=1e-3, steps=4, batch_size=2, save_steps=1, lora=Lora(r=2))
    before = {
        "pictures": (learner, chosen_of(first=50), (0, 1)),
        "prompts": (learner, chosen_of(texts=["a", "b"]), (0, 1)),
        "learning rate": (replace(learner, learning_rate=1e-4), chosen_of(), (0, 1)),
        "seed": (learner, chosen_of(), (0, 2)),
    }[other]
    dying(monkeypatch, 2)
    with pytest.raises(Stopped):
        before[0].tune(pipeline_of(), before[1], tmp_path / "b" / "policy", before[2])
    assert (tmp_path / "b" / "policy.tuning").exists()
    undisturbed = learner.tune(pipeline_of(), chosen_of(), tmp_path / "a" / "policy", (0, 1))
    found = learner.tune(pipeline_of(), chosen_of(), tmp_path / "b" / "policy", (0, 1))
    assert distance(tuned(Path(undisturbed)), tuned(Path(found))) == 0


@pytest.mark.parametrize("lora", [None, Lora(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_gradient_checkpointing_changes_nothing_but_memory(
    kind: str, lora: Lora | None, pipeline_of: PipelineOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = ImageLearner(learning_rate=1e-3, steps=3, batch_size=2, lora=lora)
    plain = learner.tune(pipeline_of(kind), chosen_of(), tmp_path / "a", (0,))
    calls: list[int] = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return checkpoint(*given, **named)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    saving = replace(learner, gradient_checkpointing=True).tune(pipeline_of(kind), chosen_of(), tmp_path / "b", (0,))
    assert calls
    assert distance(tuned(Path(plain)), tuned(Path(saving))) < 1e-5


def test_the_optimiser_starts_anew_or_is_carried(
    pipeline_of: PipelineOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Carried: two tunings of one step each equal one optimiser's two steps, on the same noise every step."""
    backward = ImageLearner._backward
    monkeypatch.setattr(ImageLearner, "_backward", lambda *given: backward(*given[:-1], (0,)))
    learner = ImageLearner(learning_rate=1e-3, batch_size=6, steps=1, schedule="constant", lora=None)

    def twice(name: str, **options: Any) -> State:
        again = replace(learner, **options)
        first = again.tune(pipeline_of(), chosen_of(), tmp_path / name / "1" / "policy", (0, 1))
        return tuned(Path(again.tune(first, chosen_of(), tmp_path / name / "2" / "policy", (0, 2))))

    whole = replace(learner, steps=2).tune(pipeline_of(), chosen_of(), tmp_path / "whole" / "policy", (0, 1))
    assert distance(twice("carry", optimizer="carry"), tuned(Path(whole))) < 2e-6
    assert distance(twice("reset"), tuned(Path(whole))) > 1e-4


def test_a_diverging_tuning_and_nothing_to_learn_from_are_one_line(pipeline_of: PipelineOf, tmp_path: Path) -> None:
    learner = ImageLearner(learning_rate=1e30, steps=9, batch_size=1, max_grad_norm=1e30, lora=None)
    with pytest.raises(UserError, match=r"^tune: the loss is nan at step \d; lower tune.learning_rate$"):
        learner.tune(pipeline_of(), chosen_of(), tmp_path / "policy", (0,))
    assert not (tmp_path / "policy").exists()
    with pytest.raises(UserError, match="nothing to learn"):
        learner.tune(pipeline_of(), [], tmp_path / "policy", (0,))


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_dropped_caption_is_no_caption(kind: str, pipeline_of: PipelineOf, tmp_path: Path) -> None:
    """All captions dropped: the weights of a tuning on the prompt that says nothing; a share: neither one nor other."""
    options = {"learning_rate": 1e-2, "steps": 3, "batch_size": 4, "lora": None}

    def tuned(name: str, texts: Sequence[str], dropout: float) -> State:
        learner = ImageLearner(**options, caption_dropout=dropout)
        return denoiser(learner.tune(pipeline_of(kind), chosen_of(texts=texts), tmp_path / name, (0,)))

    without = tuned("without", ("",), 0.0)
    assert distance(tuned("all", TEXTS, 1 - 1e-9), without) == 0.0
    assert distance(tuned("some", TEXTS, 0.5), without) > 1e-4
    assert distance(tuned("none", TEXTS, 0.0), tuned("half", TEXTS, 0.5)) > 1e-4

"""The image sampler against the bare diffusers pipeline: one picture, one prompt, one generator at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import tiny_pipelines
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from tiny_pipelines import KINDS

from raftune import families, table
from raftune.errors import UserError
from raftune.picture import PictureCodec
from raftune.pipelines import LORA, resident_pipeline
from raftune.rank import Best, NothingChosen, choose
from raftune.reward.jpeg import JpegSize
from raftune.sample.image import ImageSampler
from raftune.sample.text import TextSampler
from raftune.score import Rewards, Weighted
from raftune.tune.image import ImageLearner
from raftune.types import Candidate, Prompt, Scored, seed_of

SEED = (7, 2)
TEXTS = [Prompt("p0", "a red seven"), Prompt("p1", "a blue circle upon a hill")]
CLASSES = [Prompt("p0", "hen"), Prompt("p1", "3")]  # a name and a number
PipelineOf = Callable[..., Path]


def prompts_for(kind: str) -> list[Prompt]:
    return CLASSES if kind == "dit" else TEXTS


def bare(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn_by(pipe: Any, prompt: Prompt, index: int, steps: int = 2, **call: Any) -> PIL.Image.Image:
    """What somebody without us would draw for this address."""
    numbers = {"hen": 7, "3": 3}
    dit = isinstance(pipe, diffusers.DiTPipeline)
    asked = {"class_labels": [numbers[str(prompt.content)]]} if dit else {"prompt": prompt.content}
    call = size_of(pipe) | call
    generator = torch.Generator().manual_seed(seed_of(*SEED, prompt.id, index))
    return pipe(**asked, generator=generator, num_inference_steps=steps, **call).images[0]


def size_of(pipe_or_kind: Any) -> dict[str, int]:
    """The library's own size of a Flux picture is 256 × 256 here, which takes seconds."""
    flux = pipe_or_kind == "flux" or isinstance(pipe_or_kind, diffusers.FluxPipeline)
    return {"height": 16, "width": 16} if flux else {}


def gap(one: PIL.Image.Image, other: PIL.Image.Image) -> int:
    assert one.size == other.size
    return int(np.abs(np.asarray(one, np.int32) - np.asarray(other, np.int32)).max())


def images(candidates: list[Candidate]) -> dict[tuple[str, int], PIL.Image.Image]:
    return {(one.prompt.id, one.index): one.output.image for one in candidates}


def fault(sampler: ImageSampler, folder: Path, prompts: list[Prompt] = TEXTS, k: int = 1) -> str:
    """What a user is told: one line."""
    with pytest.raises(UserError) as error:
        sampler.sample(folder, prompts, k, SEED)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("guidance", [None, 1.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_the_bare_pipelines(kind: str, guidance: float | None, pipeline_of: PipelineOf) -> None:
    """Every family, with and without classifier-free guidance and by the pipeline's own default."""
    folder, prompts = pipeline_of(kind), prompts_for(kind)
    drawn = ImageSampler(steps=2, guidance=guidance, **size_of(kind)).sample(folder, prompts, 2, SEED)
    assert [(one.prompt, one.index) for one in drawn] == [(p, i) for p in prompts for i in range(2)]
    pipe, call = bare(folder), {} if guidance is None else {"guidance_scale": guidance}
    for one in drawn:
        assert one.source == "policy"
        assert gap(one.output.image, drawn_by(pipe, one.prompt, one.index, **call)) <= 1
    found = images(drawn)
    assert gap(found["p0", 0], found["p0", 1]) > 10
    if guidance == 4.0:  # the same noise under the other prompt, so that it is the prompt that tells
        alike = [Prompt("same id", one.content) for one in prompts]
        sampler = ImageSampler(steps=2, guidance=9.0, **size_of(kind))
        one, other = (sampler.sample(folder, [prompt], 1, SEED)[0].output for prompt in alike)
        assert one.sha256 != other.sha256


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_does_not_depend_on_its_batch(kind: str, pipeline_of: PipelineOf) -> None:
    folder, prompts = pipeline_of(kind), prompts_for(kind)
    size = size_of(kind)
    whole = images(ImageSampler(steps=2, batch_rows=5, **size).sample(folder, prompts, 4, SEED))
    assert len(whole) == 8
    for sampler, some, k in [
        (ImageSampler(steps=2, batch_rows=1, **size), prompts, 2),
        (ImageSampler(steps=2, batch_rows=3, **size), prompts[::-1], 2),
        (ImageSampler(steps=2, **size), prompts[1:], 4),
    ]:
        for key, image in images(sampler.sample(folder, some, k, SEED)).items():
            assert gap(image, whole[key]) <= 1
    pictures = list(whole.values())
    assert min(gap(a, b) for i, a in enumerate(pictures) for b in pictures[:i]) > 10
    other = images(ImageSampler(steps=2, **size).sample(folder, prompts, 1, (*SEED, "other")))
    assert gap(other["p0", 0], whole["p0", 0]) > 10


@pytest.mark.parametrize(("guidance", "k", "rows"), [(1.0, 1, 2), (1.0, 4, 2), (4.0, 1, 4), (4.0, 4, 4)])
def test_the_text_encoder_sees_a_prompt_once(guidance: float, k: int, rows: int, pipeline_of: PipelineOf) -> None:
    """And once more for the empty prompt of guidance; never K times."""
    seen: list[int] = []
    encoder = resident_pipeline(pipeline_of()).text_encoder
    hook = encoder.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    ImageSampler(steps=1, guidance=guidance, batch_rows=3).sample(pipeline_of(), TEXTS, k, SEED)
    hook.remove()
    assert sum(seen) == rows


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3"])
def test_negative_prompt_and_guidance_are_the_pipelines(kind: str, pipeline_of: PipelineOf) -> None:
    folder, pipe = pipeline_of(kind), bare(pipeline_of(kind))
    drawn: list[PIL.Image.Image] = []
    for guidance, negative in [(3.0, None), (9.0, None), (9.0, "dull and grey, without any light at all")]:
        sampler = ImageSampler(steps=2, guidance=guidance, negative_prompt=negative)
        found = images(sampler.sample(folder, TEXTS, 1, SEED))
        for prompt in TEXTS:
            wanted = drawn_by(pipe, prompt, 0, guidance_scale=guidance, negative_prompt=negative)
            assert gap(found[prompt.id, 0], wanted) <= 1
        drawn.append(found["p0", 0])
    assert gap(drawn[0], drawn[1]) > 2
    assert gap(drawn[1], drawn[2]) > 1


@pytest.mark.parametrize(
    ("kind", "name"),
    [("sd", "DDPMScheduler"), ("sd", "DDIMScheduler"), ("sdxl", "DPMSolverMultistepScheduler")],
)
def test_another_scheduler_is_the_librarys(kind: str, name: str, pipeline_of: PipelineOf) -> None:
    folder, pipe = pipeline_of(kind), bare(pipeline_of(kind))
    own = images(ImageSampler(steps=3).sample(folder, TEXTS, 1, SEED))
    found = images(ImageSampler(steps=3, scheduler=name).sample(folder, TEXTS, 1, SEED))
    same = type(pipe.scheduler).__name__ == name
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    for prompt in TEXTS:
        assert gap(found[prompt.id, 0], drawn_by(pipe, prompt, 0, steps=3)) <= 1
    assert (gap(found["p0", 0], own["p0", 0]) <= 1) == same
    again = images(ImageSampler(steps=3).sample(folder, TEXTS, 1, SEED))  # the resident pipeline has its own back
    assert gap(again["p0", 0], own["p0", 0]) == 0


@pytest.mark.parametrize(
    ("kind", "height", "width"), [("sd", 24, 16), ("sdxl", 16, 24), ("sd3", 32, 8), ("flux", 8, 12)]
)
def test_another_size_is_drawn(kind: str, height: int, width: int, pipeline_of: PipelineOf) -> None:
    (one,) = ImageSampler(height=height, width=width, steps=2).sample(pipeline_of(kind), TEXTS[:1], 1, SEED)
    assert (one.output.height, one.output.width) == (height, width)
    wanted = drawn_by(bare(pipeline_of(kind)), TEXTS[0], 0, height=height, width=width)
    assert wanted.size == (width, height)
    assert gap(one.output.image, wanted) <= 1


@pytest.mark.parametrize(
    ("kind", "sampler", "said"),
    [
        ("sd", ImageSampler(scheduler="FlowMatchEulerDiscreteScheduler"), "sample.scheduler: 'FlowMatch"),
        ("sd", ImageSampler(scheduler="Eulr"), "'Eulr' does not fit; use one of DDIMScheduler, "),
        ("sd", ImageSampler(height=15), "sample.height: 15 is not a multiple of 2, as StableDiffusionPipeline needs"),
        ("sd", ImageSampler(guidance=3.0, steps=2000), "sample: StableDiffusionPipeline: `num_inference_steps`: 2000"),
        ("flux", ImageSampler(width=10), "sample.width: 10 is not a multiple of 4, as FluxPipeline needs; 8 is"),
        ("dit", ImageSampler(height=16), "sample.height: DiTPipeline does not take it"),
        ("dit", ImageSampler(negative_prompt="x"), "sample.negative_prompt: DiTPipeline takes none"),
        ("flux", ImageSampler(negative_prompt="x"), "sample.negative_prompt: FluxPipeline takes none"),
    ],
)
def test_what_a_pipeline_does_not_take_is_named(
    kind: str, sampler: ImageSampler, said: str, pipeline_of: PipelineOf
) -> None:
    assert said in fault(sampler, pipeline_of(kind), prompts_for(kind))


def test_prompts_that_cannot_be_drawn_are_named(pipeline_of: PipelineOf) -> None:
    chat = Prompt("c", ({"role": "user", "content": "a red seven"},))
    assert fault(ImageSampler(), pipeline_of(), [chat]) == "prompt 'c' is a chat; pictures are drawn from texts"
    assert "prompt 'cock' is no class of this DiTPipeline" in fault(
        ImageSampler(), pipeline_of("dit"), [*CLASSES, Prompt("p2", "cock")]
    )
    assert "prompt '1000' is no class" in fault(ImageSampler(), pipeline_of("dit"), [Prompt("p2", "1000")])
    assert "sample.k: 0 candidates per prompt" in fault(ImageSampler(), pipeline_of(), TEXTS, k=0)
    assert ImageSampler().sample(pipeline_of(), [], 1, SEED) == []


def checker() -> dict[str, Any]:
    """A safety checker to which everything is unsafe."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config=small, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=32
    )
    unsafe = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        unsafe.concept_embeds_weights.fill_(-1.5)
        unsafe.special_care_embeds_weights.fill_(-1.5)
    size = {"shortest_edge": 32}
    processor = transformers.CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    return {"safety_checker": unsafe, "feature_extractor": processor}


def test_what_the_safety_checker_replaced_is_kept_and_never_chosen(tmp_path: Path) -> None:
    from tiny_pipelines import build_pipeline

    folder = build_pipeline(tmp_path / "sd", **checker())
    drawn = ImageSampler(steps=1).sample(folder, TEXTS, 2, SEED)
    assert [(one.prompt.id, one.index, one.output.flagged) for one in drawn] == [
        *(("p0", 0, True), ("p0", 1, True), ("p1", 0, True), ("p1", 1, True))
    ]
    assert all(not np.asarray(one.output.image).any() for one in drawn)  # black, as the library leaves it
    table.write_candidates(tmp_path / "c.parquet", drawn, PictureCodec())
    read = table.read_candidates(tmp_path / "c.parquet", PictureCodec())
    assert read == drawn
    assert all(one.output.flagged for one in read)
    scored = Rewards((Weighted(JpegSize(True, "jpeg")),))(read)
    assert [one.reward for one in scored] == [None] * 4
    with pytest.raises(NothingChosen, match=r"chose none of 4 candidates \(4 without a reward\)"):
        choose(Best(), scored)


def test_an_unknown_family_is_sampled_by_its_prompts_and_not_tuned(
    pipeline_of: PipelineOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = ImageSampler(steps=2, guidance=5.0, negative_prompt="grey", batch_rows=3)
    known = images(sampler.sample(pipeline_of(), TEXTS, 2, SEED))
    monkeypatch.delitem(families.FAMILIES, "StableDiffusionPipeline")
    seen: list[int] = []
    encoder = resident_pipeline(pipeline_of()).text_encoder
    hook = encoder.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    found = sampler.sample(pipeline_of(), TEXTS, 2, SEED)
    hook.remove()
    assert sum(seen) == 8  # the other path indeed: every picture encodes its prompt, and the negative one
    assert len(found) == 4
    for key, image in images(found).items():
        assert gap(image, known[key]) <= 1
    with pytest.raises(UserError) as error:
        ImageLearner().tune(pipeline_of(), [Scored(found[0], 1.0)], tmp_path / "policy", (0,))
    assert str(error.value).startswith("tune: StableDiffusionPipeline cannot be tuned yet; StableDiffusionXLPipeline, ")
    assert "\n" not in str(error.value)


def edited(folder: Path, to: Path, **parts: Any) -> Path:
    """A copy whose index says something else."""
    shutil.copytree(folder, to)
    index = to / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | parts))
    return to


def test_a_pipeline_without_a_denoiser(pipeline_of: PipelineOf, tmp_path: Path) -> None:
    picture = ImageSampler(steps=1).sample(pipeline_of(), TEXTS[:1], 1, SEED)[0]
    prior = diffusers.StableCascadeUNet(
        conditioning_dim=8,
        block_out_channels=(8, 8),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        switch_level=(False,),
        clip_image_in_channels=8,
        clip_text_in_channels=32,
        clip_text_pooled_in_channels=32,
    )
    diffusers.StableCascadePriorPipeline(
        tokenizer=tiny_pipelines.tokenizer(),
        text_encoder=tiny_pipelines.text_encoder(projected=True),
        prior=prior,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    ).save_pretrained(tmp_path / "prior")
    said = fault(ImageSampler(), tmp_path / "prior")
    assert "StableCascadePriorPipeline has neither a unet nor a transformer to tune (it has prior, " in said
    folder = edited(pipeline_of(), tmp_path / "sd", unet=[None, None])
    assert str(folder) in fault(ImageSampler(), folder)
    with pytest.raises(UserError, match="has neither a unet nor a transformer to tune"):
        ImageLearner().tune(folder, [Scored(picture, 1.0)], tmp_path / "policy", (0,))
    unheard = edited(pipeline_of(), tmp_path / "unheard", _class_name="UnheardOfPipeline")
    with pytest.raises(UserError, match=r"is a UnheardOfPipeline, which diffusers [\d.]+ does not have"):
        ImageLearner().tune(unheard, [Scored(picture, 1.0)], tmp_path / "policy", (0,))
    assert "is a UnheardOfPipeline, which diffusers" in fault(ImageSampler(), unheard)


def test_models_of_the_other_modality(pipeline_of: PipelineOf, tiny: Path) -> None:
    said = fault(ImageSampler(), tiny)
    assert str(tiny) in said
    assert "has no model_index.json; modality image needs a diffusers pipeline" in said
    with pytest.raises(UserError) as error:
        TextSampler(max_new_tokens=2).sample(pipeline_of(), TEXTS, 1, SEED)
    assert str(pipeline_of()) in str(error.value)
    assert "modality: image" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_lora_of_somebody_else_and_damaged_files(pipeline_of: PipelineOf, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    save_file({"unet.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "lora" / LORA)
    assert "is a LoRA that does not name its base; start from the pipeline itself" in fault(
        ImageSampler(), tmp_path / "lora"
    )
    (tmp_path / "lora" / LORA).write_bytes(b"\x00" * 20)
    assert str(tmp_path / "lora") in fault(ImageSampler(), tmp_path / "lora")
    gone = {"lora_adapter_metadata": json.dumps({"unet.base_model_name_or_path": str(tmp_path / "gone")})}
    save_file({"unet.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "lora" / LORA, gone)
    assert str(tmp_path / "gone") in fault(ImageSampler(), tmp_path / "lora")
    folder = edited(pipeline_of(), tmp_path / "sd")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert str(folder) in fault(ImageSampler(), folder)
    weights.unlink()
    assert str(folder) in fault(ImageSampler(), folder)
    (folder / "model_index.json").write_text("{")
    assert str(folder) in fault(ImageSampler(), folder)

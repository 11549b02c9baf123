"""What the image learner writes: a LoRA that the library opens on its base, or a pipeline that opens by itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from test_image_sample import CLASSES, TEXTS, bare, drawn_by, gap, images, size_of
from test_image_tune import chosen_of, denoiser, distance

from raftune.errors import UserError
from raftune.files import FIGURES, read_json
from raftune.pipelines import LORA, load
from raftune.sample.image import ImageSampler
from raftune.tune.image import ImageLearner
from raftune.tune.lora import Lora

PipelineOf = Callable[..., Path]
SEED = (7, 2)  # of test_image_sample.drawn_by
QUICK = {"learning_rate": 2e-2, "steps": 4, "batch_size": 3}


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux"])
def test_the_library_opens_the_adapter_on_its_base(kind: str, pipeline_of: PipelineOf, tmp_path: Path) -> None:
    """``load_lora_weights`` and our sampler, which fuses it, draw the same, and not what the base draws."""
    base = pipeline_of(kind)
    before = contents(base)
    learner = ImageLearner(**QUICK, lora=Lora(r=4, alpha=8))
    folder = Path(learner.tune(base, chosen_of(), tmp_path / "policy", (0, 1)))
    assert contents(base) == before
    assert set(contents(folder)) == {LORA, FIGURES}
    assert all(".lora_" in name for name in load_file(folder / LORA))
    data = (folder / LORA).read_bytes()  # safetensors itself writes the metadata in any order: other bytes every time
    said = list(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"])
    assert said == sorted(said)
    sampler = ImageSampler(steps=2, guidance=3.0, **size_of(kind))
    ours, without = (images(sampler.sample(policy, TEXTS, 1, SEED)) for policy in (folder, base))
    pipe = bare(base)
    pipe.load_lora_weights(folder)
    for prompt in TEXTS:
        assert gap(ours[prompt.id, 0], drawn_by(pipe, prompt, 0, guidance_scale=3.0)) <= 2
        assert gap(ours[prompt.id, 0], without[prompt.id, 0]) > 10


def adapter(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / LORA)


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_a_second_round_goes_on_with_the_adapter(kind: str, pipeline_of: PipelineOf, tmp_path: Path) -> None:
    """A round that learns next to nothing ends where the one before did, noise of a new adapter included."""
    base = pipeline_of(kind)
    first = ImageLearner(**QUICK, lora=Lora(r=4)).tune(base, chosen_of(), tmp_path / "1" / "policy", (0, 1))
    still = ImageLearner(learning_rate=1e-12, steps=1, lora=Lora(r=4))
    again = still.tune(first, chosen_of(), tmp_path / "2" / "policy", (0, 2))
    assert distance(adapter(first), adapter(again)) < 1e-9
    on = ImageLearner(**QUICK, lora=Lora(r=4)).tune(first, chosen_of(), tmp_path / "3" / "policy", (0, 2))
    assert distance(adapter(first), adapter(on)) > 1e-2
    anew = still.tune(base, chosen_of(), tmp_path / "4" / "policy", (0, 2))
    # A new one has no effect yet
    assert max(weight.abs().max() for name, weight in adapter(anew).items() if ".lora_B." in name) < 1e-9
    shutil.rmtree(tmp_path / "1")  # the later adapter stands on the base, not on the earlier one
    assert ImageSampler(steps=1, **size_of(kind)).sample(on, TEXTS, 1, SEED)


@pytest.mark.parametrize(
    "lora", [Lora(r=8), Lora(r=4, alpha=4), Lora(r=4, dropout=0.5), Lora(r=4, target_modules=("to_q",))]
)
def test_another_adapter_than_the_policys_is_refused(lora: Lora, pipeline_of: PipelineOf, tmp_path: Path) -> None:
    first = ImageLearner(**QUICK, lora=Lora(r=4)).tune(pipeline_of(), chosen_of(), tmp_path / "1", (0,))
    with pytest.raises(UserError) as error:
        ImageLearner(**QUICK, lora=lora).tune(first, chosen_of(), tmp_path / "2", (0,))
    assert f"{first} is an adapter with r=4, alpha=32, dropout=0.0 of to_k, to_out.0, to_q, to_v; set" in str(
        error.value
    )
    assert str(pipeline_of()) in str(error.value)
    assert not (tmp_path / "2").exists()


def test_what_takes_no_adapter_is_refused(pipeline_of: PipelineOf, tmp_path: Path) -> None:
    chosen = chosen_of(texts=["hen", "3"])
    with pytest.raises(UserError, match=r"^tune.lora: DiTTransformer2DModel takes no adapter; set tune.lora: null$"):
        ImageLearner(**QUICK).tune(pipeline_of("dit"), chosen, tmp_path / "policy", (0,))
    with pytest.raises(UserError, match=r"^tune\.lora: .*nope"):
        ImageLearner(lora=Lora(target_modules=("nope",))).tune(pipeline_of(), chosen_of(), tmp_path / "p", (0,))


def test_own_target_modules(pipeline_of: PipelineOf, tmp_path: Path) -> None:
    lora = Lora(r=2, target_modules=("to_q",))
    folder = ImageLearner(**QUICK, lora=lora).tune(pipeline_of(), chosen_of(), tmp_path / "policy", (0,))
    assert all(".to_q.lora_" in name for name in adapter(folder))


def test_full_tuning_of_an_adapter_begins_with_the_merged_weights(pipeline_of: PipelineOf, tmp_path: Path) -> None:
    """W + (alpha / r) B A, by hand."""
    lora = ImageLearner(**QUICK, lora=Lora(r=4, alpha=8)).tune(pipeline_of(), chosen_of(), tmp_path / "1", (0, 1))
    still = ImageLearner(learning_rate=1e-12, steps=1, lora=None)
    found = denoiser(Path(still.tune(lora, chosen_of(), tmp_path / "2", (0, 2))))
    wanted, deltas = denoiser(pipeline_of()), adapter(lora)
    for name, down in deltas.items():
        if ".lora_A." in name:
            up = deltas[name.replace(".lora_A.", ".lora_B.")]
            wanted[name.removeprefix("unet.").replace(".lora_A.", ".")] += 8 / 4 * up @ down
    assert distance(found, wanted) < 1e-5
    assert distance(found, denoiser(pipeline_of())) > 1e-2


def test_the_adapter_names_its_base_from_anywhere(
    pipeline_of: PipelineOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pipeline_of()
    monkeypatch.chdir(base.parent)
    learner = ImageLearner(**QUICK, lora=Lora(r=2))
    folder = learner.tune(Path(base.name), chosen_of(), tmp_path / "policy", (0,))
    with safe_open(Path(folder) / LORA, "pt") as file:
        assert f'"unet.base_model_name_or_path": "{base.resolve()}"' in " ".join(file.metadata().values())
    monkeypatch.chdir(tmp_path)
    assert ImageSampler(steps=1).sample("policy", TEXTS, 1, SEED)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux", "dit"])
def test_a_fully_tuned_pipeline_opens_by_itself(kind: str, pipeline_of: PipelineOf, tmp_path: Path) -> None:
    """Everything but the denoiser is the base's to the byte; what it draws is what our sampler draws."""
    base, texts = pipeline_of(kind), ["hen", "3"] if kind == "dit" else ["a red seven", "a blue circle"]
    learner = ImageLearner(**QUICK, lora=None)
    chosen = chosen_of(2 if kind == "dit" else 6, texts)  # of DiT the first two: the library's are square
    folder = Path(learner.tune(base, chosen, tmp_path / "policy", (0, 1)))
    part = "transformer" if kind in {"sd3", "flux", "dit"} else "unet"
    wanted, found = contents(base), contents(folder)
    others = {name for name in wanted if not name.startswith(part)}
    assert {name: found[name] for name in others} == {name: wanted[name] for name in others}
    assert {name for name in found if not name.startswith(part)} == others | {FIGURES}
    assert distance(denoiser(folder), denoiser(base)) > 1e-2
    moved = folder.rename(tmp_path / "elsewhere")
    prompts = CLASSES if kind == "dit" else TEXTS
    pipe: Any = DiffusionPipeline.from_pretrained(moved)
    pipe.set_progress_bar_config(disable=True)
    ours = images(ImageSampler(steps=2, **size_of(kind)).sample(moved, prompts, 1, SEED))
    for prompt in prompts:
        assert gap(ours[prompt.id, 0], drawn_by(pipe, prompt, 0)) <= 1
        assert gap(ours[prompt.id, 0], drawn_by(bare(base), prompt, 0)) > 5
    again = Path(learner.tune(moved, chosen, tmp_path / "second", (0, 2)))
    assert read_json(again / FIGURES)["steps"] == 4
    assert distance(denoiser(again), denoiser(moved)) > 1e-2


def test_in_bfloat16_the_adapter_stays_beside_the_weights(pipeline_of: PipelineOf, tmp_path: Path) -> None:
    """Fused, a change of less than half a step of bfloat16 would be lost; beside the weights it acts."""
    small = ImageLearner(**{**QUICK, "learning_rate": 1e-5}, lora=Lora(r=4))
    adapter_folder = small.tune(pipeline_of(), chosen_of(), tmp_path / "1", (0,))
    assert load(adapter_folder, torch.bfloat16).unet.peft_config
    assert not getattr(load(adapter_folder, torch.float32).unet, "peft_config", {})


def test_weights_in_fp16_files_alone_load(pipeline_of: PipelineOf, tmp_path: Path) -> None:
    DiffusionPipeline.from_pretrained(pipeline_of()).save_pretrained(tmp_path / "p", variant="fp16")
    assert list((tmp_path / "p").rglob("*.fp16.safetensors"))
    out = ImageLearner(**QUICK).tune(tmp_path / "p", chosen_of(), tmp_path / "1", (0,))
    assert ImageSampler(steps=1, height=16, width=16).sample(out, TEXTS, 1, SEED)


def test_a_negative_prompt_without_guidance_is_refused(pipeline_of: PipelineOf) -> None:
    with pytest.raises(UserError, match="does nothing without guidance"):
        ImageSampler(steps=1, guidance=1.0, negative_prompt="dull").sample(pipeline_of(), TEXTS, 1, SEED)

"""The script with the arguments of diffusers' LoRA example: a command line of it is taken whole, and what it leaves
opens as the example's does."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest
import torch
import typer
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from raftune import UserError, diffusion_arguments, table
from raftune.captions import captions
from raftune.imports import import_object
from raftune.picture import PictureCodec
from raftune.pipelines import LORA
from raftune.recipe import parse

SCRIPT = Path(__file__).parent.parent / "recipes" / "raft_text_to_image_lora.py"
# What the example of diffusers takes, by its own --help
_TAKEN = """
pretrained_model_name_or_path revision variant dataset_name dataset_config_name train_data_dir image_column
caption_column validation_prompt num_validation_images validation_epochs max_train_samples output_dir cache_dir seed
resolution center_crop random_flip train_batch_size num_train_epochs max_train_steps gradient_accumulation_steps
gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps snr_gamma use_8bit_adam allow_tf32
dataloader_num_workers adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm push_to_hub hub_token
prediction_type hub_model_id logging_dir mixed_precision report_to local_rank checkpointing_steps
checkpoints_total_limit resume_from_checkpoint enable_xformers_memory_efficient_attention noise_offset rank
image_interpolation_mode
"""
TAKEN = _TAKEN.split()
REWARD = """
import numpy as np

def bright(images, prompts):
    return [float(np.asarray(image).mean()) for image in images]
"""
AROUND = {"model": "m", "prompts": {"path": "captions.jsonl"}}  # what the script puts beside the arguments
CAPTIONS = ["a red seven", "a blue circle", "a hill", "two hens", "a green cow", "a house"]


def run(*line: object) -> None:
    import_object(f"{SCRIPT}:main")([str(word) for word in line])


def parsed(*line: object) -> Namespace:
    known = ["--pretrained_model_name_or_path", "m", "--train_data_dir", "d", "--reward", "pickscore"]
    return diffusion_arguments.parser().parse_args([*known, *map(str, line)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder as the example takes it, though its pictures are gone, and a reward."""
    (tmp_path / "data").mkdir()
    rows = [{"file_name": f"{n}.png", "text": caption} for n, caption in enumerate(CAPTIONS)]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "my_rewards.py").write_text(REWARD)
    return tmp_path


def test_the_whole_command_line_is_known() -> None:
    assert vars(parsed()).keys() >= set(TAKEN)
    tables = (diffusion_arguments.HONOURED, diffusion_arguments.FIXED, diffusion_arguments.UNUSED)
    assert sorted(name for one in tables for name in one) == sorted(TAKEN)  # each in one of them, and no other
    with pytest.raises(SystemExit) as ended:
        parsed("--rang", 4)
    assert ended.value.code == 2


def test_a_command_line_of_the_example_makes_a_lora(
    folder: Path, pipeline_of: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The pictures are of the resolution, the steps are those asked for, the brightest are learned from, and the
    pipeline opens what was left."""
    out, pipeline = folder / "out", pipeline_of("sd")
    line = [
        *("--pretrained_model_name_or_path", pipeline, "--train_data_dir", folder / "data", "--caption_column", "text"),
        *("--resolution", 16, "--center_crop", "--random_flip", "--train_batch_size", 1, "--max_train_steps", 6),
        *("--gradient_accumulation_steps", 2, "--learning_rate", "1e-3", "--lr_scheduler", "cosine"),
        *("--lr_warmup_steps", 0, "--snr_gamma", 5.0, "--seed", 42, "--rank", 2, "--output_dir", out),
        *("--validation_prompt", "cute dragon", "--num_validation_images", 3, "--report_to", "tensorboard"),
        *("--checkpointing_steps", 500, "--max_grad_norm", 1, "--resume_from_checkpoint", "latest"),
        *("--reward", f"{folder}/my_rewards.py:bright", "--num_generations", 3, "--prompts_per_round", 4),
        *("--rounds", 2, "--num_inference_steps", 2, "--guidance_scale", 1.0, "--heldout", 2),
    ]
    with caplog.at_level(logging.WARNING, "raftune"):
        run(*line)
    said = [record.message for record in caplog.records if "without a meaning" in record.message]
    assert said == ["--center_crop, --random_flip: set, and without a meaning here"]

    recipe = yaml.safe_load((out / "config.yaml").read_text())
    assert recipe["tune"]["lora"] | {"target_modules": None} == {
        "r": 2,
        "alpha": 2,
        "dropout": 0.0,
        "target_modules": None,
    }
    assert (recipe["tune"]["batch_size"], recipe["tune"]["batch_rows"], recipe["tune"]["schedule"]) == (2, 1, "cosine")
    for number in (1, 2):
        here = out / "rounds" / f"{number:04d}"
        scored = table.read_scored(here / "scored.parquet", PictureCodec())
        assert len(scored) == 12 and {one.candidate.output.width for one in scored} == {16}
        assert {str(one.candidate.prompt.content) for one in scored} <= set(CAPTIONS)
        for one in table.read_scored(here / "chosen.parquet", PictureCodec()):
            rivals = [s.reward or 0 for s in scored if s.candidate.prompt.id == one.candidate.prompt.id]
            assert one.reward == max(rivals)
        shown = table.read_scored(here / "validation.parquet", PictureCodec())
        assert [one.candidate.prompt.content for one in shown] == ["cute dragon"] * 3
    assert [*(out / "tensorboard").glob("**/events.*")]
    told = json.loads((out / "rounds" / "0002" / "policy" / "raftune.json").read_text())
    assert told["steps"] == 3  # 6 in all, in two rounds

    left, last = load_file(out / LORA), load_file(out / "rounds" / "0002" / "policy" / LORA)
    assert all(torch.equal(left[key], last[key]) for key in last) and left.keys() == last.keys()
    assert any(tensor.abs().max() > 0 for key, tensor in left.items() if "lora_B" in key or "lora.up" in key)
    pipe = DiffusionPipeline.from_pretrained(pipeline)
    before = {key: tensor.clone() for key, tensor in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(out)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after = pipe.unet.state_dict()
    assert any(not torch.equal(after[key], before[key]) for key in before)

    written = (out / "rounds" / "0002" / "DONE").stat().st_mtime_ns
    run(*line)  # nothing is left to do
    assert (out / "rounds" / "0002" / "DONE").stat().st_mtime_ns == written


def test_who_hears_of_it() -> None:
    """Nobody unless asked; "all" is what is installed; what has projects gets the example's."""
    for nobody in (parsed(), parsed("--report_to", "none")):
        assert diffusion_arguments.recipe(nobody, 4)["track"] == []
    one = parse(diffusion_arguments.recipe(parsed("--report_to", "wandb"), 4) | AROUND, "arguments").track
    assert [(track.use, track.project) for track in one] == [("wandb", "text2image-fine-tune")]
    several = parse(diffusion_arguments.recipe(parsed("--report_to", "all"), 4) | AROUND, "arguments").track
    assert {"tensorboard", "trackio"} <= {track.use for track in several}
    assert [track.project for track in several if track.use == "tensorboard"] == [None]


def test_numbers_are_those_of_the_example() -> None:
    """Steps as the example counts them: batches rounded up, then accumulated, times epochs."""
    given = parsed("--train_batch_size", 4, "--gradient_accumulation_steps", 2, "--num_train_epochs", 3, "--rounds", 5)
    assert diffusion_arguments.steps_of_a_round(given, 41) == 4  # 11 batches, 6 steps an epoch, 18 in all
    assert diffusion_arguments.steps_of_a_round(parsed("--max_train_steps", 1000), 41) == 100
    tune = diffusion_arguments.recipe(parsed("--scale_lr", "--learning_rate", "1e-5", "--train_batch_size", 3), 9)[
        "tune"
    ]
    assert tune["learning_rate"] == pytest.approx(3e-5)
    assert (tune["snr_gamma"], tune["weight_decay"], tune["schedule"]) == (None, 1e-2, "constant")
    assert tune["lora"] == {"r": 4, "alpha": 4}
    for name, own in (
        ("polynomial", "linear"),
        ("cosine_with_restarts", "cosine"),
        ("constant_with_warmup", "constant"),
    ):
        given = parsed("--lr_scheduler", name)
        assert diffusion_arguments.recipe(given, 9)["tune"]["schedule"] == own
        assert diffusion_arguments.unused(given) == ["lr_warmup_steps"]  # its default is 500
    assert diffusion_arguments.unused(parsed()) == []
    few = diffusion_arguments.recipe(parsed("--prompts_per_round", 10, "--train_batch_size", 4), 100)
    assert diffusion_arguments.most_steps(few) == 30  # ten passes over ten pictures, three steps each


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("--adam_beta1", 0.8), "--adam_beta1 0.8: is 0.9 here"),
        (("--noise_offset", 0.1), "--noise_offset 0.1: is 0 here"),
        (("--resume_from_checkpoint", "checkpoint-500"), "a run goes on in its own output_dir"),
        (("--mixed_precision", "fp16"), "--mixed_precision fp16: is not there; use bf16 or no"),
        (("--lr_scheduler", "sine"), "--lr_scheduler: sine within a round is not there"),
        (("--reward_weights", 1, 2), "2 weights for 1 rewards"),
        (("--rounds", 0), "--rounds: should be at least 1"),
    ],
)
def test_what_cannot_be_honoured_is_told(line: tuple[object, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        diffusion_arguments.check(parsed(*line))


def test_faults_end_with_one_line(
    folder: Path, pipeline_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--pretrained_model_name_or_path", pipeline_of("sd"), "--reward", f"{folder}/my_rewards.py:bright")
    data = ("--train_data_dir", folder / "data", "--output_dir", folder / "out")
    for line, said in (
        ((*model,), "--dataset_name: is needed"),
        ((*model, *data, "--caption_column", "caption"), "has no column 'caption'; it has file_name, text"),
        ((*model, *data, "--prediction_type", "v_prediction"), "the pipeline predicts epsilon"),
        ((*model, "--train_data_dir", folder, "--output_dir", folder / "out", "--floor", "x"), None),
    ):
        with pytest.raises((typer.Exit, SystemExit)) as ended:
            run(*line)
        code = ended.value.exit_code if isinstance(ended.value, typer.Exit) else ended.value.code
        assert code == 2
        if said:
            assert said in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves its csv file open
def test_captions_come_without_pictures(tmp_path: Path) -> None:
    """Of a folder that datasets reads with its pictures, and as datasets draws them."""
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    (tmp_path / "metadata.csv").write_text("file_name,text,style\na.png,a cat,ink\nb.png,a dog,oil\n")
    whole = [{"text": "a cat", "style": "ink"}, {"text": "a dog", "style": "oil"}]
    assert captions("text", str(tmp_path)) == whole  # as a dataset: the pictures are a column, and gone
    named = [{"file_name": "a.png", **whole[0]}, {"file_name": "b.png", **whole[1]}]
    assert captions("text", None, folder=str(tmp_path)) == named
    table = datasets.load_dataset(str(tmp_path))["train"].remove_columns("image")
    assert captions("text", str(tmp_path), most=1, seed=3) == list(table.shuffle(seed=3).select([0]))


def test_a_list_of_captions_is_so_many_prompts(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": ["a cat", "a kitten"]}, {"text": ["a dog"]}, {"text": []}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [row["text"] for row in captions("text", None, folder=str(tmp_path))] == ["a cat", "a kitten", "a dog"]
    (tmp_path / "metadata.jsonl").write_text('{"text": 3}')
    with pytest.raises(UserError, match="holds a text or a list of texts, not int"):
        captions("text", None, folder=str(tmp_path))

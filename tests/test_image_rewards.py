"""Rewards of pictures, each held against a truth computed another way, on tiny random models built here."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import build_tokenizer
from conftest import candidate as text_candidate
from safetensors.torch import save_file

from raftune import pick
from raftune.config import RewardConfig
from raftune.errors import UserError
from raftune.picture import Picture
from raftune.reward.aesthetic import LAYERS_OF_MLP, AestheticReward, read_head
from raftune.reward.clip import ClipReward
from raftune.reward.functions import FunctionReward, rewards
from raftune.reward.image_classifier import ImageClassifierReward
from raftune.reward.jpeg import JpegSize
from raftune.reward.pictures import in_batches
from raftune.score import RewardError
from raftune.types import Candidate, Prompt

SIDE = 32
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
TEXT = {"vocab_size": 260, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 259, "max_position_embeddings": 24}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": SIDE, "patch_size": 8}


def noise(seed: int, side: int = SIDE) -> PIL.Image.Image:
    """Of another brightness and tint for each seed, so that embeddings differ."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (side, side, 3)) * draw.uniform(0.2, 1.0, 3)
    return PIL.Image.fromarray(pixels.astype(np.uint8))


def candidate(seed: int, text: str = "a red seven", flagged: bool = False, **columns: Any) -> Candidate:
    return Candidate(Prompt(f"of {text}", text, columns), seed, Picture.of(noise(seed), flagged))


def pixels(some: Candidate) -> torch.Tensor:
    """``[1, 3, H, W]`` as the processor of the tiny models makes them: pictures of their size are only normalised."""
    normal = (np.asarray(some.output.image) / 255 - MEAN) / STD
    return torch.tensor(normal, dtype=torch.float32).permute(2, 0, 1)[None]


def save(model: Any, folder: Path, processor: str) -> Path:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 0:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    settings = {
        "image_processor_type": processor,
        "size": size,
        "crop_size": size,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_tokenizer(folder: Path) -> Path:
    """One token per byte between ``<s>`` and ``</s>``, as CLIP's; it knows no longest length."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    tokenizer.save_pretrained(folder)
    return folder


def build_clip(folder: Path, width: int = 12) -> Path:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        projection_dim=width, text_config={**SMALL, **TEXT}, vision_config=VISION, logit_scale_init_value=1.5
    )
    return save_tokenizer(save(CLIPModel(config), folder, "CLIPImageProcessor"))


def build_classifier(folder: Path, *labels: str) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**VISION, id2label=dict(enumerate(labels)), label2id={v: k for k, v in enumerate(labels)})
    return save(ViTForImageClassification(config), folder, "ViTImageProcessor")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_classifier(tmp_path_factory.mktemp("digits"), "one", "two", "seven")


def alone(folder: Path, some: Candidate, pad: bool = False) -> Any:
    """The library's own forward on one picture and one text, with pixels and ids made by hand."""
    from transformers import AutoModel

    ids = [256, *build_tokenizer()(some.prompt.content)["input_ids"][: TEXT["max_position_embeddings"] - 2], 257]
    if pad:
        ids += [TEXT["pad_token_id"]] * (TEXT["max_position_embeddings"] - len(ids))
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), pixel_values=pixels(some)), model.requires_grad_(False)


TEXTS = ["a red seven", "a cat", "b", "the green horse on a hill"]
SOME = [candidate(seed, TEXTS[seed % 4]) for seed in range(6)]


def test_clip_score_is_100_times_the_librarys_cosine(clip: Path) -> None:
    found = ClipReward(str(clip))(SOME)
    for value, some in zip(found, SOME, strict=True):
        output, model = alone(clip, some)
        assert value == pytest.approx(100 * (output.logits_per_image / model.logit_scale.exp()).item(), abs=1e-3)
        cosine = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds).item()
        assert value == pytest.approx(100 * cosine, abs=1e-3)
    assert len({round(value or 0, 2) for value in found}) == len(SOME)
    assert min(value or 0 for value in found) < 0  # not clipped


def test_pickscore_is_the_librarys_logit(clip: Path) -> None:
    reward = pick.reward(RewardConfig(use=f"pickscore:{clip}"))
    assert reward.name == "pickscore"
    wanted = [alone(clip, some)[0].logits_per_image.item() for some in SOME]
    assert reward(SOME) == pytest.approx(wanted, abs=1e-3)
    assert ClipReward(str(clip))(SOME) != pytest.approx(wanted, abs=1e-1)


def test_siglip_works_too_on_texts_padded_to_its_context(tmp_path: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(text_config={**SMALL, **TEXT, "projection_size": 16}, vision_config=VISION)
    folder = save(SiglipModel(config), tmp_path, "SiglipImageProcessor")
    save_tokenizer(folder)
    found = ClipReward(str(folder))(SOME)
    for value, some in zip(found, SOME, strict=True):
        output, model = alone(folder, some, pad=True)
        cosine = (output.logits_per_image - model.logit_bias) / model.logit_scale.exp()
        assert value == pytest.approx(100 * cosine.item(), abs=1e-3)


def test_long_prompts_are_cut_and_counted(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = "x" * 40
    found = ClipReward(str(clip))([candidate(0, long), candidate(1, long), candidate(0, "x" * 22), candidate(2, "b")])
    assert found[0] == pytest.approx(found[2])  # <s> and </s> stay: 22 of the 24 tokens are text
    assert caplog.text.count("tokens cut") == 1
    assert "1 prompts over 24 tokens cut to that length" in caplog.text


def test_a_chat_a_text_and_a_model_of_another_kind_are_refused(clip: Path, digits: Path) -> None:
    chat = Candidate(Prompt("c", ({"role": "user", "content": "Hi"},)), 0, Picture.of(noise(0)))
    with pytest.raises(UserError, match="prompt 'c' is a chat; prompts must be texts"):
        ClipReward(str(clip))([chat])
    with pytest.raises(UserError, match="reward 'clip' scores pictures; the output of prompt 'p0' is a Text"):
        ClipReward(str(clip))([text_candidate("p0", 0, "words")])
    with pytest.raises(UserError, match="is a ViTModel, which has no joint embedding"):
        ClipReward(str(digits))(SOME)


def test_a_model_without_processor_or_tokenizer(clip: Path, tmp_path: Path) -> None:
    bare = build_clip(tmp_path / "bare")
    for file in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (bare / file).unlink()
    wanted = ClipReward(str(clip))(SOME)
    assert ClipReward(str(bare), processor=str(clip))(SOME) == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(UserError, match="does not load.*image processor"):
        pick.reward(RewardConfig(use=f"clip:{bare}"))(SOME)
    (bare / "preprocessor_config.json").write_bytes((clip / "preprocessor_config.json").read_bytes())
    with pytest.raises(UserError, match="has no tokenizer"):  # the library makes an empty one up
        ClipReward(str(bare))(SOME)


def by_hand(folder: Path, some: Candidate) -> list[float]:
    """The L2-normalised embedding of a picture, in Python's own arithmetic."""
    from transformers import CLIPModel

    with torch.inference_mode():
        features = CLIPModel.from_pretrained(folder).eval().get_image_features(pixels(some)).pooler_output[0].tolist()
    length = math.sqrt(math.fsum(x * x for x in features))
    return [x / length for x in features]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_linear_head_is_a_dot_product(suffix: str, clip: Path, tmp_path: Path) -> None:
    weight, bias = torch.randn(1, 12, generator=torch.manual_seed(1)), torch.tensor([5.25])
    file = tmp_path / f"head.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)({"weight": weight, "bias": bias}, file)
    reward = pick.reward(RewardConfig(use=f"aesthetic:head.{suffix}@{clip}"), tmp_path)
    wanted = [
        math.fsum(w * x for w, x in zip(weight[0].tolist(), by_hand(clip, some), strict=True)) + 5.25 for some in SOME
    ]
    assert reward(SOME) == pytest.approx(wanted, abs=1e-4)
    assert len({round(value, 3) for value in wanted}) == len(SOME)
    before = getattr(reward, "version", None)
    torch.save({"weight": weight, "bias": bias + 1}, file)
    assert getattr(reward, "version", None) != before


def mlp(width: int, activation: bool = False) -> torch.nn.Sequential:
    """As published: layers 0, 2, 4, 6, 7 with dropout between; with ReLU the numbers are others."""
    sizes, dropouts = [width, 1024, 128, 64, 16, 1], [0.2, 0.2, 0.1]
    modules: list[torch.nn.Module] = []
    for place, (before, after) in enumerate(pairwise(sizes)):
        modules.append(torch.nn.Linear(before, after))
        modules += [torch.nn.ReLU()] if activation else []
        modules += [torch.nn.Dropout(dropouts[place])] if place < 3 else []
    return torch.nn.Sequential(*modules).eval()


def test_the_improved_predictor_is_its_five_layers(clip: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    layers = mlp(12)
    state = {f"layers.{name}": value for name, value in layers.state_dict().items()}
    assert {name.rpartition(".")[0] for name in state} == set(LAYERS_OF_MLP)
    torch.save(state, tmp_path / "mlp.pth")
    found = AestheticReward(read_head(tmp_path / "mlp.pth"), str(clip))(SOME)
    with torch.inference_mode():
        wanted = [layers(torch.tensor(by_hand(clip, some))).item() for some in SOME]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert len({round(value, 5) for value in wanted}) == len(SOME)


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    relu = {f"layers.{name}": value for name, value in mlp(12, activation=True).state_dict().items()}
    bad: list[tuple[str, Any, str]] = [
        ("relu.pth", relu, "is no aesthetic head; .*it holds layers.0.weight"),
        ("two.pth", {"weight": torch.ones(2, 12), "bias": torch.ones(2)}, "is no aesthetic head"),
        ("flat.pth", {"weight": torch.ones(12), "bias": torch.ones(1)}, "is no aesthetic head"),
        ("empty.pth", {}, "it holds nothing"),
        ("list.pth", [1, 2], "holds no names and tensors"),
        ("module.pth", torch.nn.Linear(3, 1), "is not a file of weights"),
    ]
    for name, content, said in bad:
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=f"{name}.*{said}" if not said.startswith("it") else said):
            pick.reward(RewardConfig(use=f"aesthetic:{name}"), tmp_path)
    for name in ("page.pth", "page.safetensors"):
        (tmp_path / name).write_text("<!DOCTYPE html>")
        with pytest.raises(UserError, match=f"{name} is not a file of weights"):
            read_head(tmp_path / name)
    with pytest.raises(UserError, match="absent.pth: no such file"):
        pick.reward(RewardConfig(use="aesthetic:absent.pth"), tmp_path)


def test_a_head_of_another_width_names_both(clip: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1, 768), "bias": torch.ones(1)}, tmp_path / "l14.pth")
    torch.save({"weight": torch.ones(1, 7), "bias": torch.ones(1)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="head .*l14.pth takes embeddings 768 wide, .* gives 12; .*HEAD@CLIPMODEL"):
        AestheticReward(read_head(tmp_path / "l14.pth"), str(clip))(SOME)
    with pytest.raises(UserError, match="no CLIP model is known for the head .*odd.pth, .* 7 wide"):
        AestheticReward(read_head(tmp_path / "odd.pth"))(SOME)


@pytest.mark.parametrize(("width", "model"), [(768, "openai/clip-vit-large-patch14"), (512, "patch32")])
def test_the_published_heads_have_their_own_clip(width: int, model: str, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1, width), "bias": torch.ones(1)}, tmp_path / "head.pth")
    with pytest.raises(UserError, match=f"model: openai/.*{model[-7:]} does not load"):  # there is no hub here
        pick.reward(RewardConfig(use="aesthetic:head.pth"), tmp_path)(SOME)


def labelled(*labels: str, column: str = "label") -> list[Candidate]:
    return [candidate(seed, f"a {label}", **{column: label}) for seed, label in enumerate(labels)]


def test_the_classifier_gives_the_pipelines_log_probability(digits: Path) -> None:
    from transformers import pipeline

    some = labelled("seven", "one", "two", "seven", "one", "two")
    found = pick.reward(RewardConfig(use=f"image-classifier:{digits}"))(some)
    judged = pick.reward(RewardConfig(use=f"correct:{digits}"))
    pipe = pipeline("image-classification", model=str(digits), device="cpu")
    for value, correct, one in zip(found, judged(some), some, strict=True):
        scores = {row["label"]: row["score"] for row in pipe(one.output.image, top_k=3, function_to_apply="softmax")}
        assert math.exp(value or 0) == pytest.approx(scores[one.prompt.columns["label"]], abs=1e-5)
        assert correct == float(max(scores, key=lambda label: scores[label]) == one.prompt.columns["label"])
    assert set(judged(some)) == {0.0, 1.0}
    assert judged.name == "correct"


def test_a_label_that_is_missing_or_unknown_is_named(digits: Path) -> None:
    reward = ImageClassifierReward(str(digits))
    with pytest.raises(UserError, match="prompt 'of a sevn' has the label 'sevn', .* 3 classes; closest: 'seven'"):
        reward(labelled("one", "sevn"))
    with pytest.raises(UserError, match="prompt 'of a one' has no column 'label'; it has digit"):
        reward(labelled("one", column="digit"))
    by_digit = pick.reward(RewardConfig(use=f"image-classifier:{digits}", label="digit"))
    assert by_digit(labelled("one", column="digit")) == reward(labelled("one"))


def test_numbers_are_labels_too(tmp_path: Path) -> None:
    folder = build_classifier(tmp_path, "0", "1", "2")
    as_text = ImageClassifierReward(str(folder))([candidate(0, label="2")])
    assert ImageClassifierReward(str(folder))([candidate(0, label=2)]) == as_text


def test_jpeg_size_is_what_pillow_writes() -> None:
    flat = Candidate(Prompt("p", "grey"), 0, Picture.of(PIL.Image.new("RGB", (SIDE, SIDE), "grey")))
    some = [flat, candidate(1), candidate(2, flagged=True)]
    wanted = []
    for one in some[:2]:
        one.output.image.save(stream := io.BytesIO(), "jpeg", quality=95)
        wanted.append(len(stream.getvalue()) / 1000)
    assert wanted[0] < wanted[1]
    large = pick.reward(RewardConfig(use="jpeg-incompressibility"))
    small = pick.reward(RewardConfig(use="jpeg-compressibility"))
    assert (large(some), large.name) == ([*wanted, None], "jpeg-incompressibility")
    assert (small(some), small.name) == ([-wanted[0], -wanted[1], None], "jpeg-compressibility")


def test_flagged_pictures_are_not_scored_and_counted(
    clip: Path, digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = [candidate(seed, flagged=seed in {1, 4}, label="one") for seed in range(6)]
    whole = [candidate(seed, label="one") for seed in range(6)]
    for reward in (ClipReward(str(clip)), ImageClassifierReward(str(digits))):
        caplog.clear()
        wanted = [None if seed in {1, 4} else value for seed, value in enumerate(reward(whole))]
        assert reward(some) == [None if value is None else pytest.approx(value, abs=1e-4) for value in wanted]
        assert caplog.text.count("2 of 6 pictures flagged as unsafe, not scored") == 1
    assert ClipReward(str(clip))([some[1]]) == [None]
    assert ClipReward(str(clip))([]) == []


def test_batches_keep_every_value_in_its_place() -> None:
    some = [candidate(seed, flagged=seed % 3 == 0) for seed in range(11)]
    sizes = []

    def score(batch: Sequence[Candidate], images: Sequence[PIL.Image.Image]) -> list[float]:
        sizes.append(len(batch))
        assert all(
            np.array_equal(np.asarray(i), np.asarray(noise(c.index))) for c, i in zip(batch, images, strict=True)
        )
        return [float(c.index) for c in batch]

    assert in_batches("r", some, score, "work", size=3) == [None if i % 3 == 0 else float(i) for i in range(11)]
    assert sizes == [3, 3, 1]


def test_a_function_gets_pictures_prompts_and_columns() -> None:
    seen: dict[str, Any] = {}

    def remember(images: list[Any], prompts: list[str], **columns: Any) -> list[float]:
        seen.update(images=images, prompts=prompts, **columns)
        return [10.0, 20.0]

    some = [candidate(0, label="a"), candidate(1, flagged=True, label="b"), candidate(2, "a cat", label="c")]
    assert FunctionReward(remember, "r")(some) == [10.0, None, 20.0]
    assert [np.asarray(image).tolist() for image in seen.pop("images")] == [
        np.asarray(noise(i)).tolist() for i in (0, 2)
    ]
    assert seen == {"prompts": ["a red seven", "a cat"], "label": ["a", "c"]}

    async def later(images: list[Any]) -> list[float]:
        return [float(image.width) for image in images]

    assert FunctionReward(later, "r")(some) == [SIDE, None, SIDE]
    assert FunctionReward(remember, "r")(some[1:2]) == [None]


def test_a_function_that_asks_for_the_other_kind_is_told() -> None:
    def of_texts(prompts: list[str], completions: list[str]) -> list[float]:
        return [0.0] * len(prompts)

    def of_pictures(images: list[Any]) -> list[float]:
        return [0.0] * len(images)

    def of_ids(completion_ids: list[Any], images: Any = None) -> list[float]:
        return [0.0] * len(completion_ids)

    for function, name in ((of_texts, "completions"), (of_ids, "completion_ids")):
        with pytest.raises(UserError, match=f"asks for '{name}', but the outputs are pictures; name `images`"):
            FunctionReward(function, "r")(SOME)
    texts = [text_candidate("p0", 0, "words")]
    with pytest.raises(UserError, match="asks for 'images', but the outputs are texts; name `completions`"):
        FunctionReward(of_pictures, "r")(texts)
    assert FunctionReward(of_ids, "r")(texts) == [0.0]
    with pytest.raises(UserError, match="needs the column 'answer'; the prompts have none"):
        FunctionReward(lambda images, answer: [], "r")(SOME)


def test_what_a_function_returns_for_pictures_is_held_to_the_contract() -> None:
    some = [candidate(0), candidate(1, flagged=True), candidate(2)]

    def short(images: list[Any]) -> list[float]:
        return [1.0]

    def black_is_nan(images: list[Any]) -> list[float]:
        return [math.nan if not np.asarray(image).any() else 1.0 for image in images]

    with pytest.raises(RewardError, match="'short' returned 1 values for 2 pictures"):
        rewards(short)(some)
    black = Candidate(Prompt("p", "night"), 0, Picture.of(PIL.Image.new("RGB", (4, 4))))
    found = rewards(black_is_nan)([*some, black])
    assert [one.reward for one in found] == [1.0, None, 1.0, None]
    assert [one.parts["black_is_nan"] for one in found] == [1.0, None, 1.0, None]


def test_imagereward_without_and_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = pick.reward(RewardConfig(use="imagereward"))
    with pytest.raises(UserError, match="'imagereward' needs the package image-reward.*pip install image-reward"):
        reward(SOME)
    loaded = []

    def load(name: str, device: str) -> Any:
        loaded.append(name)
        return SimpleNamespace(score=lambda prompt, image: len(prompt) + np.asarray(image).mean())

    monkeypatch.setitem(sys.modules, "ImageReward", SimpleNamespace(load=load))
    wanted = [len(TEXTS[seed % 4]) + np.asarray(noise(seed)).mean() for seed in range(6)]
    assert reward(SOME) == pytest.approx(wanted)
    assert reward([SOME[1]]) == pytest.approx(wanted[1:2])
    assert loaded == ["ImageReward-v1.0"]


def test_the_specs_and_what_is_said_of_unknown_ones(clip: Path, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(clip.parent)
    found = pick.reward(RewardConfig(use=f"clip:models/{clip.name}", name="fit"), tmp_path)
    assert (found.name, len(found(SOME))) == ("fit", 6)
    both = [RewardConfig(use=f"image-classifier:{digits}", weight=2), RewardConfig(use="jpeg-compressibility")]
    (scored,) = pick.rewards(both)([candidate(0, label="two")])
    assert scored.reward == pytest.approx(
        2 * scored.parts["image-classifier"] + JpegSize(True, "j")([candidate(0)])[0]  # type: ignore[operator]
    )
    default = pick.reward(RewardConfig(use="pickscore"))
    assert isinstance(default, ClipReward)
    assert (default.policy, default.scale) == ("yuvalkirstain/PickScore_v1", None)
    for use in ("clip", "aesthetic", "image-classifier:", "correct", "jpeg"):
        with pytest.raises(UserError, match=f"'{use}' is unknown; use vader, .*clip:MODEL, aesthetic:HEAD"):
            pick.reward(RewardConfig(use=use))


def test_nothing_is_printed_and_nothing_warns(clip: Path, digits: Path, tmp_path: Path) -> None:
    Picture.of(noise(0)).image.save(tmp_path / "0.png")
    code = f"""
import PIL.Image
from raftune import pick
from raftune.config import RewardConfig
from raftune.picture import Picture
from raftune.types import Candidate, Prompt
some = Candidate(Prompt("p", "x" * 90, {{"label": "one"}}), 0, Picture.of(PIL.Image.open({str(tmp_path / "0.png")!r})))
for use in ("clip:{clip}", "correct:{digits}"):
    assert pick.reward(RewardConfig(use=use))([some])[0] is not None
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == "reward 'clip': 1 prompts over 24 tokens cut to that length\n"

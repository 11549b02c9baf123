"""The architectures, untrained: autoencoder, UNet, text encoder, tokenizer, scheduler, reader and judge."""

import copy
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from data import LABELS, SIZE, captions
from diffusers import AutoencoderKL, DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessorPil,
)

TEXT_WIDTH = 96
MAX_TOKENS = 16


def vae() -> AutoencoderKL:
    """Pictures (B, 3, 32, 32) to latents (B, 4, 8, 8) and back."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def unet() -> UNet2DConditionModel:
    """Latents (B, 4, 8, 8) under a caption; the caption is looked at only at 4 x 4, where it is cheap."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        cross_attention_dim=TEXT_WIDTH,
    )


def scheduler() -> DPMSolverMultistepScheduler:
    """Stable Diffusion's noise schedule, v-prediction, DPM-Solver++ for few steps."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        steps_offset=1,  # as Stable Diffusion has it; the pipeline warns otherwise
    )


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first, until each word is one token."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for word in split for pair in pairwise(word)):
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        for word in split:
            while best in (found := list(pairwise(word))):
                at = found.index(best)
                word[at : at + 2] = ["".join(best)]
    return merges


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose whole words are those of the captions; other words fall apart into bytes."""
    words = sorted({word for caption in captions() for word in caption.split()})
    merges = _merges(words)
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(merge) for merge in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    """Token ids (B, 16) to (B, 16, 96)."""
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return CLIPTextModel(config)


def classifier(name: str) -> PreTrainedModel:
    """The reader (a ResNet) or the judge (a ConvNext): pictures (B, 3, 32, 32) in [-1, 1] to 51 logits."""
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    if name == "reader":
        config = ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", **names
        )
        return ResNetForImageClassification(config)
    # ConvNext's usual layer scale of 1e-6 is for deep nets and long training; here it would hold the blocks back.
    config = ConvNextConfig(
        patch_size=4,
        num_stages=3,
        hidden_sizes=[48, 96, 192],
        depths=[1, 2, 1],
        layer_scale_init_value=0.1,
        **names,
    )
    return ConvNextForImageClassification(config)


def processor() -> ViTImageProcessorPil:
    """Any PIL picture to (3, 32, 32) in [-1, 1]; Pillow alone, so that torchvision is not needed."""
    return ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def save(model: torch.nn.Module | DiffusionPipeline, folder: Path) -> None:
    """Saves a copy in float16, half the bytes, and leaves the model itself in float32.

    The configs say float32 nevertheless: transformers loads what its config says, and half precision is slow on a CPU.
    """
    copy.deepcopy(model).to(dtype=torch.float16).save_pretrained(folder)
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        if config.get("dtype") == "float16":
            path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")

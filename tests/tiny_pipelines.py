"""Tiny random diffusion pipelines of each family, built here: no network, no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from conftest import build_tokenizer

CLIP = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 77,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "projection_dim": 32,
}
VAE = {
    "block_out_channels": (8, 16),  # two blocks: a latent is two pixels a side
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
UNET = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def tokenizer() -> Any:
    own = build_tokenizer()
    own.model_max_length = 77
    return own


def text_encoder(projected: bool = False) -> Any:
    config = transformers.CLIPTextConfig(**CLIP)
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config).eval()


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=260, d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5EncoderModel(config).eval()


def sd(prediction: str = "epsilon", scheduler: str = "DDIMScheduler", **parts: Any) -> Any:
    kind = getattr(diffusers, scheduler)
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**VAE),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=diffusers.UNet2DConditionModel(**UNET),
        scheduler=kind(beta_schedule="scaled_linear", prediction_type=prediction, steps_offset=1, clip_sample=False),
        safety_checker=parts.get("safety_checker"),
        feature_extractor=parts.get("feature_extractor"),
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    unet = diffusers.UNet2DConditionModel(
        **{**UNET, "cross_attention_dim": 64},
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL(**VAE),
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def sd3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=diffusers.AutoencoderKL(**VAE, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False),
        text_encoder=text_encoder(projected=True),
        text_encoder_2=text_encoder(projected=True),
        text_encoder_3=t5(),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        tokenizer_3=tokenizer(),
    )


def flux() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKL(**VAE, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        transformer=transformer,
    )


def dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    return diffusers.DiTPipeline(transformer, diffusers.AutoencoderKL(**VAE), diffusers.DDIMScheduler())


KINDS = {"sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux, "dit": dit}


def build_pipeline(folder: Path, kind: str = "sd", seed: int = 0, **options: Any) -> Path:
    """A random pipeline whose pictures differ from each other and from prompt to prompt."""
    torch.manual_seed(seed)
    pipe = KINDS[kind](**options)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    with torch.no_grad():
        for parameter in denoiser.parameters():  # some begin as zeros
            parameter.add_(torch.randn_like(parameter) * 0.05)
    pipe.save_pretrained(folder)
    if kind == "dit":  # the library reads the names of classes from the index, and does not write them
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": {"3": "fish, tench", "7": "hen"}}))
    return folder

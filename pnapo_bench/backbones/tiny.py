"""A small but real rectified-flow model of the embedded world, in the classes of Stable Diffusion 3.

A diffusers ``SD3Transformer2DModel`` predicts velocities in the 4 x 6 x 6 latents of a diffusers ``AutoencoderKL``,
told by a transformers ``CLIPTextModel``. 48 x 48 pictures; weights in ``tiny_weights/`` with their card.

Shape legend: B images, C H W latent, N tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnapo_bench.contracts import Conditioning
from pnapo_bench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = Path(__file__).parent / "tiny_weights"
PARTS = ("transformer", "vae", "text_encoder")
SHIFT = 3.0  # of the sampler's times towards noise, SD3's own value


def new_modules() -> dict[str, Any]:
    """Untrained modules, randomly initialised from torch's global generator."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from pnapo_bench.world.vocabulary import END, LENGTH, PAD, WORDS

    width, heads = 128, 4
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=48,
        scaling_factor=1.0,  # both set from the data when pretrained
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    transformer = SD3Transformer2DModel(
        sample_size=6,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        joint_attention_dim=width,
        caption_projection_dim=width,
        pooled_projection_dim=width,
        pos_embed_max_size=3,
        qk_norm="rms_norm",
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=heads,
            max_position_embeddings=LENGTH,
            eos_token_id=END,
            pad_token_id=PAD,
            bos_token_id=None,
        )
    )
    return {"transformer": transformer, "vae": vae, "text_encoder": text_encoder}


class Tiny:
    """The embedded backbone (``contracts.Backbone``), float32."""

    name = "tiny"
    latent_shape: tuple[int, ...] = (4, 6, 6)
    lora_targets: Sequence[str] = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    )

    def __init__(self, device: str = "cpu", weights: Path = WEIGHTS) -> None:
        import torch
        from diffusers import AutoencoderKL, SD3Transformer2DModel
        from transformers import CLIPTextModel

        self.device = torch.device(device)
        self.revision = weights_hash(weights)
        self.transformer: Any = SD3Transformer2DModel.from_pretrained(
            weights / "transformer", torch_dtype=torch.float32
        )
        self.vae: Any = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32)
        self.text_encoder: Any = CLIPTextModel.from_pretrained(weights / "text_encoder", dtype=torch.float32)
        for module in (self.transformer, self.vae, self.text_encoder):
            module.to(self.device).eval().requires_grad_(False)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """``tokens`` [B, N, D] and ``pooled`` [B, D]."""
        import torch

        from pnapo_bench.world.vocabulary import tokenize

        try:
            ids = tokenize(list(prompts))
        except ValueError as error:
            raise UserError(str(error)) from error
        with torch.no_grad():
            text = self.text_encoder(ids.to(self.device))
        return {"tokens": text.last_hidden_state, "pooled": text.pooler_output}

    def velocity(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """v_theta [B, C, H, W]."""
        predicted: Tensor = self.transformer(
            x_t,
            timestep=1000 * t,
            encoder_hidden_states=conditioning["tokens"],
            pooled_projections=conditioning["pooled"],
            return_dict=False,
        )[0]
        return predicted

    def scheduler(self, steps: int) -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, 48, 48] in [0, 1]."""
        import torch

        config = self.vae.config
        with torch.no_grad():
            decoded = self.vae.decode(
                latents.to(self.device) / config.scaling_factor + config.shift_factor, return_dict=False
            )[0]
        pictures: Tensor = ((decoded + 1) / 2).clamp(0, 1).float().cpu()
        return pictures

    def add_lora(self, rank: int, alpha: float, seed: int) -> None:
        import torch
        from peft import LoraConfig

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transformer.add_adapter(
                LoraConfig(
                    r=rank, lora_alpha=alpha, target_modules=list(self.lora_targets), init_lora_weights="gaussian"
                )
            )

    def save_weights(self, folder: Path, mode: str) -> None:
        if mode == "lora":
            self.transformer.save_lora_adapter(folder)
        else:
            self.transformer.save_pretrained(folder)

    def load_weights(self, folder: Path, mode: str) -> None:
        from diffusers import SD3Transformer2DModel

        if mode == "lora":
            self.transformer.load_lora_adapter(str(folder), prefix=None, use_safetensors=True)
        else:
            self.transformer = SD3Transformer2DModel.from_pretrained(folder).to(self.device).eval()


def weights_hash(folder: Path) -> str:
    """SHA-256 over the weight files."""
    digest = hashlib.sha256()
    for part in PARTS:
        for file in sorted((folder / part).glob("*.safetensors")):
            digest.update(file.read_bytes())
    return digest.hexdigest()

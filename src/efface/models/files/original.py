"""Models as one file in the original layout, which A1111 and ComfyUI load."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
VAE_MID = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def denoiser_key(config: Any) -> Callable[[str], str]:
    """Translates a UNet's parameter names into CompVis' (``input_blocks.1.1.…``)."""
    n = config.layers_per_block
    looks = ["Cross" in kind for kind in config.up_block_types]

    def place(m: re.Match[str]) -> str:
        side, i, part, j = m[1], int(m[2]), m[3], int(m[4])
        if side == "down":
            if part == "downsamplers":
                return f"input_blocks.{(n + 1) * (i + 1)}.0.op"
            return f"input_blocks.{(n + 1) * i + j + 1}.{int(part == 'attentions')}"
        if part == "upsamplers":
            return f"output_blocks.{(n + 1) * i + n}.{2 if looks[i] else 1}.conv"
        return f"output_blocks.{(n + 1) * i + j}.{int(part == 'attentions')}"

    def key(name: str) -> str:
        in_resnet = ".resnets." in name
        name = re.sub(r"^(down|up)_blocks\.(\d+)\.(\w+samplers)\.(\d+)\.conv", place, name)
        name = re.sub(r"^(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", place, name)
        for old, new in ENDS.items():
            if name.startswith(f"{old}."):
                name = new + name[len(old) :]
        if in_resnet:
            for old, new in RESNET.items():
                name = name.replace(f".{old}.", f".{new}.")
        return name

    return key


def vae_key(levels: int) -> Callable[[str], str]:
    """Translates an autoencoder's parameter names into CompVis' (``encoder.down.0.block.0.…``)."""

    def key(name: str) -> str:
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)

        def turned(m: re.Match[str]) -> str:  # counted from the other end
            part = "block" if m[2] == "resnets" else "upsample"
            return f"up.{levels - 1 - int(m[1])}.{part}"

        name = re.sub(
            r"up_blocks\.(\d+)\.(resnets|upsamplers(?=\.0))(?:(?<=samplers)\.0)?", turned, name
        )
        if "mid_block.attentions.0." in name:
            for old, new in VAE_MID.items():
                name = name.replace(f".{old}.", f".{new}.")
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")

    return key


def open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's tensors by OpenCLIP's names; queries, keys and values in one."""
    found = {}
    for name, w in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        whole = name
        for old, new in OPEN_CLIP.items():
            whole = whole.replace(old, new)
        if ".q_proj." in name:
            parts = [state[name.replace(".q_proj.", f".{c}_proj.")] for c in "qkv"]
            whole = whole.replace("self_attn.q_proj.", "attn.in_proj_")
            found[whole] = torch.cat(parts)
        else:
            found[whole] = w
    return found


def clip(module: Any) -> dict[str, Tensor]:
    """A CLIP text encoder's tensors without ``text_model.``, which some versions put in front."""
    return {
        k.removeprefix("text_model."): w
        for k, w in module.state_dict().items()
        if "position_ids" not in k
    }


def unet_and_vae(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """UNet and autoencoder by CompVis' names."""
    unet, vae = parts["unet"], parts["vae"]
    of_unet, of_vae = denoiser_key(unet.config), vae_key(len(vae.config.block_out_channels))
    found = {f"model.diffusion_model.{of_unet(k)}": w for k, w in unet.state_dict().items()}
    for k, w in vae.state_dict().items():
        name = of_vae(k)
        if "mid.attn_1" in name and w.ndim == 2:
            w = w[:, :, None, None]  # a 1x1 convolution there
        found[f"first_stage_model.{name}"] = w
    return found


def stable_diffusion(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of a Stable Diffusion 1.x or 2.x model by their original names.

    Source: the layout of CompVis' and Stability's released checkpoints.
    """
    text = clip(parts["text_encoder"])
    if parts["text_encoder"].config.hidden_act == "gelu":  # OpenCLIP's
        also = {f"cond_stage_model.model.{k}": w for k, w in open_clip(text).items()}
    else:
        also = {f"cond_stage_model.transformer.text_model.{k}": w for k, w in text.items()}
    return unet_and_vae(parts) | also


def sdxl(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of an SDXL model by their original names."""
    first = "conditioner.embedders.0.transformer.text_model"
    found = {f"{first}.{k}": w for k, w in clip(parts["text_encoder"]).items()}
    second = clip(parts["text_encoder_2"])
    projection = second.pop("text_projection.weight")
    second = open_clip(second) | {"text_projection": projection.T}
    found |= {f"conditioner.embedders.1.model.{k}": w for k, w in second.items()}
    return unet_and_vae(parts) | found


ORDER = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "proj_mlp")


def regrouped(state: Mapping[str, Tensor], rules: Mapping[str, str]) -> dict[str, Tensor]:
    """A transformer's tensors by other names; those that get the same one become one, in ORDER.

    Args:
        rules: regular expressions and what takes their place, one after the other.
    """
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for name, w in state.items():
        new = name
        for old, instead in rules.items():
            new = re.sub(old, instead, new)
        place = next((i for i, part in enumerate(ORDER) if f".{part}." in name), 0)
        found.setdefault(new, []).append((place, w))
    ordered = {k: [w for _, w in sorted(ws, key=lambda x: x[0])] for k, ws in found.items()}
    return {k: torch.cat(ws) if len(ws) > 1 else ws[0] for k, ws in ordered.items()}


def swapped(w: Tensor) -> Tensor:
    """The two halves of a tensor the other way round: scale and shift, shift and scale."""
    return torch.cat(w.chunk(2)[::-1])

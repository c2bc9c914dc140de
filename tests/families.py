"""Tiny random pipelines of real classes, one of each family, without a network."""

import diffusers as D
import torch
import transformers as T

SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def byte_alphabet():
    """GPT-2's 256 byte characters, in id order."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(rest))]


def clip_tokenizer(pad="<|endoftext|>"):
    pieces = byte_alphabet() + [c + "</w>" for c in byte_alphabet()] + SPECIAL
    vocabulary = {p: i for i, p in enumerate(pieces)}
    return T.CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=77)


def t5_tokenizer(longest=512):
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,'-!?"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(c, -3.0) for c in letters]
    return T.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=longest)


def clip(width=32, layers=2, cls=T.CLIPTextModel, act="quick_gelu"):
    return cls(
        T.CLIPTextConfig(
            vocab_size=514,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=width,
            hidden_act=act,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )


def projected(width=32, act="quick_gelu"):
    return clip(width, cls=T.CLIPTextModelWithProjection, act=act)


def t5(width=32):
    config = T.T5Config(
        vocab_size=80,
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T.T5EncoderModel(config)


def kl(channels, scale, shift=None):
    """An autoencoder that shrinks by 2."""
    quant = channels == 4
    return D.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=8,
        latent_channels=channels,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )


def unet(**changes):
    settings = {
        "sample_size": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    }
    return D.UNet2DConditionModel(**{**settings, **changes})


BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}
FLOW = D.FlowMatchEulerDiscreteScheduler


def sd2():
    return D.StableDiffusionPipeline(
        vae=kl(4, 0.18215),
        text_encoder=clip(layers=3, act="gelu"),
        tokenizer=clip_tokenizer(pad="!"),
        unet=unet(use_linear_projection=True, upcast_attention=True),
        scheduler=D.DDIMScheduler(**BETAS, set_alpha_to_one=False, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(zeros=True):
    net = unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        cross_attention_dim=32 + 48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 6 * 8,
    )
    return D.StableDiffusionXLPipeline(
        vae=kl(4, 0.13025),
        text_encoder=clip(32),
        text_encoder_2=projected(48, act="gelu"),
        unet=net,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad="!"),
        scheduler=D.EulerDiscreteScheduler.from_config({**BETAS, "timestep_spacing": "leading"}),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def sd3(v35=False, long=True):
    net = D.SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=8,
        caption_projection_dim=32,
        joint_attention_dim=96,
        pooled_projection_dim=32 + 48,
        pos_embed_max_size=24,
        dual_attention_layers=(0,) if v35 else (),
        qk_norm="rms_norm" if v35 else None,
    )
    return D.StableDiffusion3Pipeline(
        transformer=net,
        scheduler=FLOW(shift=3.0),
        vae=kl(16, 1.5305, 0.0609),
        text_encoder=projected(32),
        text_encoder_2=projected(48, act="gelu"),
        text_encoder_3=t5(96) if long else None,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad="!"),
        tokenizer_3=t5_tokenizer() if long else None,
    )


def flux(guidance=True, longest=77, **changes):
    """FLUX, which reads ``longest`` tokens: most of a tiny one's time goes into its text."""
    settings = {
        "in_channels": 64,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "guidance_embeds": guidance,
    }
    net = D.FluxTransformer2DModel(**{**settings, **changes})
    shifted = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
    return D.FluxPipeline(
        transformer=net,
        scheduler=FLOW(**shifted) if guidance else FLOW(shift=1.0),
        vae=kl(16, 0.3611, 0.1159),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(32),
        tokenizer_2=t5_tokenizer(longest),
    )


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}"
)


def qwen_tokenizer():
    pieces = [*byte_alphabet(), "<|endoftext|>"]
    tokenizer = T.Qwen2Tokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen3(cls):
    return cls(
        T.Qwen3Config(
            vocab_size=300,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=1024,
        )
    )


DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


def klein(distilled=False):
    net = D.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        axes_dims_rope=(4, 4, 4, 4),
        joint_attention_dim=3 * 16,
        guidance_embeds=False,
    )
    vae = D.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=8,
        latent_channels=4,
        layers_per_block=1,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return D.Flux2KleinPipeline(
        transformer=net,
        scheduler=FLOW(**DYNAMIC),
        vae=vae,
        text_encoder=qwen3(T.Qwen3ForCausalLM),
        tokenizer=qwen_tokenizer(),
        is_distilled=distilled,
    )


def z_image():
    net = D.ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    return D.ZImagePipeline(
        transformer=net,
        scheduler=FLOW(shift=3.0),
        vae=kl(16, 0.3611, 0.1159),
        text_encoder=qwen3(T.Qwen3Model),
        tokenizer=qwen_tokenizer(),
    )


TINY = {
    "sd2": sd2,
    "sdxl": sdxl,
    "sdxl, no zeros": lambda: sdxl(zeros=False),
    "sd3": sd3,
    "sd3, no T5": lambda: sd3(long=False),
    "sd3.5": lambda: sd3(v35=True),
    "flux dev": flux,
    "flux schnell": lambda: flux(guidance=False, longest=512),
    "flux.2 klein": klein,
    "flux.2 klein, distilled": lambda: klein(distilled=True),
    "z-image": z_image,
}
"""Builders by name."""


def build(name):
    """A pipeline with random weights everywhere: none of zeros, which would hide the text."""
    torch.manual_seed(0)
    pipeline = TINY[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
            for p in part.parameters():
                if not p.any():
                    torch.nn.init.normal_(p, std=0.1)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


PROMPTS = ["a cat", "a red house"]
SIZES = {n: 8 for n in TINY if n.startswith(("flux", "z-image"))}
"""Pixels of pictures of what takes any size; the others are made for one."""


def stock(pipeline, steps=3, seeds=(3, 4), guidance=4.0):
    """What the stock pipeline draws from our noise."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    channels = denoiser.config.in_channels // (4 if isinstance(pipeline, D.FluxPipeline) else 1)
    side = 2 if isinstance(pipeline, D.Flux2KleinPipeline) else 4
    draws = [torch.Generator().manual_seed(s) for s in seeds]
    z = torch.cat([torch.randn((1, channels, side, side), generator=g) for g in draws])
    z = z.to(denoiser.dtype)
    if isinstance(pipeline, D.ZImagePipeline):
        guidance -= 1  # it counts from 0
    if isinstance(pipeline, D.FluxPipeline):
        z = pipeline._pack_latents(z, len(z), channels, 4, 4)
    elif isinstance(pipeline.scheduler, D.EulerDiscreteScheduler):
        pipeline.scheduler.set_timesteps(steps)  # the pipeline scales by sigma itself
    options = {}
    if isinstance(pipeline, D.FluxPipeline):
        most = 512 if denoiser.config.guidance_embeds else 256
        options["max_sequence_length"] = min(most, pipeline.tokenizer_2.model_max_length)
    if isinstance(pipeline, D.Flux2KleinPipeline):
        options["text_encoder_out_layers"] = (1, 2, 3)  # a quarter, a half, three of four
    return pipeline(
        **options,
        prompt=list(PROMPTS),  # Z-Image writes into it
        height=8,
        width=8,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=z,
        output_type="pt",
    ).images


def ours(model, weights=None, steps=3, seeds=(3, 4), guidance=4.0):
    """The same pictures by our model."""
    drawn = model.generate(PROMPTS, seeds, steps, guidance, weights=weights, output_type="pt")
    return torch.stack(list(drawn))

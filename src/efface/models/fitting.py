"""Whether a model's components belong to each other."""

from __future__ import annotations

import math

from efface.errors import UserError
from efface.models.families.family import Family, Fit, Parts


def check_fit(family: Family, parts: Parts) -> None:
    """Refuse components that do not fit each other.

    Raises:
        UserError: names two of them, and their numbers.
    """
    for fit in family.fits(parts):
        if fit.n != fit.m:
            raise misfit(family, fit)
    for encoder, longest in family.limits(parts).items():
        check_tokenizer(family, parts, encoder, longest)
    config = parts["vae"].config
    colours = getattr(config, "out_channels", 3)
    if colours != 3:
        raise misfit(family, Fit("vae out_channels", colours, "colours of a picture", 3))
    scale = getattr(config, "scaling_factor", 1.0)
    if not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale <= 0:
        raise UserError(f"the vae's scaling_factor is {scale!r}; a positive number is needed.")


def check_tokenizer(family: Family, parts: Parts, encoder: str, longest: int) -> None:
    """Refuse a tokenizer of more tokens, or of longer prompts, than its text encoder knows.

    Raises:
        UserError: says which.
    """
    network, name = parts[encoder], family.encoders[encoder]
    tokenizer = parts[name]
    known = network.get_input_embeddings().num_embeddings
    highest = max(len(tokenizer), *(i + 1 for i in tokenizer.added_tokens_decoder))
    if highest > known:
        raise misfit(family, Fit(f"{name} tokens", highest, f"{encoder} embeddings", known))
    places = getattr(network.config, "max_position_embeddings", None) or longest
    if longest > places:
        raise misfit(family, Fit(f"{name} length", longest, f"{encoder} positions", places))


def misfit(family: Family, fit: Fit) -> UserError:
    """Two numbers that should be one."""
    what = ""
    if fit.one.endswith("in_channels") and fit.n > fit.m:
        what = " (an inpainting or editing model, which is told more than the latent)"
    return UserError(
        f"the components of this {family.label} do not fit each other: {fit.one} {fit.n}, "
        f"{fit.other} {fit.m}{what}."
    )

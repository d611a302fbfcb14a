"""The roles that the arguments of a loss may have: one row each, with their names, values and shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from pvae.identification.terms import HANDED_IN, OF_CODES, Function, Term, uniform, zero_inflated


@dataclass(frozen=True)
class Role:
    """What an argument of a loss is.

    Args:
        pattern: of the names that such arguments have.
        part: "likelihood" or "rate", on which it has an influence, or "mask".
        domain: of the values that every such loss takes, a choice of `black_box.drawn`.
        given: what the loss gets of the real values that are drawn; by default the values.
        sides: of a rate, the shapes that are tried, a letter for each side; "" is a scalar.
        beside: the roles of a loss that takes it beside them.
        terms: what it is compared with, in place of a Normal's rate, or beside the other likelihoods.
    """

    pattern: str
    part: str = "rate"
    domain: str = "real"
    given: Function = torch.positive  # which changes nothing
    sides: tuple[str, ...] = ("BL",)
    beside: str = ""
    terms: Sequence[Term] = ()


# The names of arguments; a name that fits several patterns has the first of the usual roles.
_IMAGE = r"(x|recon|rec|dec|decoder|out|output|likelihood|p)"
_LATENT = r"(z|q|latent|enc|encoder)"
_SPREAD = r"(log_?|ln_?)?(var|sigma|scale|std|stddev|sd|variance|sigma_?sq|sigma_?2)"
_PRIOR = r"(prior|pz|p_z)"
_CODES = r"(\w*_)?(probs?|probabilit\w+|logits?|log_?probs?|log_?q\w*|q\w*|pi|alphas?|posterior|bits?|cat\w*|classes)"
_GATE = r"pi|\w*dropout\w*|zi\w*|gate\w*|\w*zero\w*|logit"
_USUAL = ("prior_loc", "prior_spread", "x", "x_spread", "reconstruction", "z", "loc", "spread")
_LATENTS = "x reconstruction loc spread"


_DISCRETE: dict[str, Function] = {  # with what the loss gets of logits
    "categorical_probs": partial(torch.softmax, dim=-1), "categorical_logits": torch.positive,
    "categorical_log_probs": partial(torch.log_softmax, dim=-1),
    "bernoulli_probs": torch.sigmoid, "bernoulli_logits": torch.positive,
}  # fmt: skip
ROLES = {
    "prior_loc": Role(rf"{_PRIOR}_?(mu|means?|loc|m)|(mu|mean|loc|m)_?{_PRIOR}|(mu_p|p_mu)"),
    "prior_spread": Role(rf"{_PRIOR}_?({_SPREAD}|s)|({_SPREAD}|s)_?{_PRIOR}|{_SPREAD}_p", domain="positive"),
    "x": Role(r"x|[xy]_true|x_in|x_batch|targets?|data|inputs?|images?|imgs?|batch|orig\w*|labels|real|t"
              r"|ground_truth|gt", "likelihood", "closed"),
    "x_spread": Role(rf"{_IMAGE}_{_SPREAD}\w*|{_SPREAD}_?{_IMAGE}|gamma|theta|disp\w*|px_r|total\w*|sigmas|r|phi"
                     r"|precision", "likelihood", "positive"),
    "reconstruction": Role(r"\w*(recon|decod|pred|generat)\w*|x_?(hat|rec|tilde|prime|logits?|mean|mu|out)"
                           r"|(mean|mu|loc)_x|logits?|out\w*|px_rate|rate|y\w*", "likelihood", "unit"),
    "z": Role(r"z|zs|z_?samples?|samples?|latents?|codes?"),
    "loc": Role(rf"({_LATENT}_?)?(mu|means?|loc|m)(_?{_LATENT})?"),
    "spread": Role(rf"({_LATENT}_?)?({_SPREAD}|logv|s|v|lv|ls|rho)(_?{_LATENT})?", domain="positive"),
    **{
        role: Role(_CODES, given=given, sides=("BL",) if role.startswith("bern") else ("BK", "BNK"),
                   beside="x reconstruction", terms=uniform(role))
        for role, given in _DISCRETE.items()
    },
    "kl": Role(r"(?!.*(weight|coef|beta|scale|anneal))(\w*(kl|diverg|regul|vq|commit)\w*|(latent|reg)_?loss|rate)",
               sides=("", "B", "BL"), beside="x reconstruction", terms=(HANDED_IN,)),
    "codes": Role(r"\w*(quant|code|embed)\w*|z_?q", terms=OF_CODES),
    "encoded": Role(r"\w*enc\w*|z?_?e|z|latents?|features?|h", beside="x reconstruction codes"),
    "zero_logits": Role(_GATE, "likelihood", beside=_LATENTS, terms=zero_inflated("zero_logits")),
    "zero_probs": Role(_GATE, "likelihood", given=torch.sigmoid, beside=_LATENTS, terms=zero_inflated("zero_probs")),
    "mask": Role(r"\w*mask\w*|observed|known", "mask", "ones"),
}  # fmt: skip
# The roles of a loss. Three tensors are first read with a rate, and then as a likelihood with its spread.
SETS = [
    roles.split()
    for roles in (
        _LATENTS, f"{_LATENTS} z", f"{_LATENTS} x_spread", "x reconstruction", "loc spread",
        *(f"{role.beside} {name}" for name, role in ROLES.items() if role.beside),
        *(f"{_LATENTS} x_spread {name}" for name in ("zero_logits", "zero_probs", "z")),
        "x reconstruction x_spread", "loc spread z",
        *(f"{_LATENTS}{z} prior_loc prior_spread" for z in ("", " z")),
    )
]  # fmt: skip


def guesses(name: str) -> set[str]:
    """Return the roles that an argument has by its name."""
    lowered = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("_")
    fits = [role for role, row in ROLES.items() if re.fullmatch(row.pattern, lowered)]
    return {*fits[:1], *(role for role in fits if role not in _USUAL)}

"""The roles that the arguments of a loss may have: one row each, with the names and shapes of such an argument.

A role whose rate is not that of a Normal brings its own terms: a posterior over classes or bits, a KL divergence that
the caller computed, or the codes of a VQ-VAE. `black_box` draws arguments by these rows, `identify` compares with their
terms.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pvae.identification.loss_terms import EPSILONS, SWAPPED, Term, added, zero_inflated


def _as_drawn(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class Role:
    """What an argument of a loss is.

    Args:
        name: for the user.
        pattern: of the names that such arguments have.
        part: of the likelihood "x", of the rate "z", or "" of neither.
        draw: "real", "unit" in (0, 1), "positive", or "ones".
        given: what the loss gets of the real values that are drawn; by default the values.
        sides: the shapes that are tried, a letter for each side after the batch; "-" is a scalar.
        beside: the roles of losses that take it beside them.
        terms: rates that depend on it, or what is written for one.
    """

    name: str
    pattern: str
    part: str = "z"
    draw: str = "real"
    given: Callable[[Tensor], Tensor] = _as_drawn
    sides: tuple[str, ...] = ("L",)
    beside: tuple[str, ...] = ()
    terms: tuple[Term, ...] = ()


def _two(logits: Tensor) -> Tensor:
    """Return the logits of two classes of which the first has the logit of a bit."""
    return torch.stack((logits, 0 * logits), -1)


def _log_k(values: Tensor, logits: Callable[[Tensor], Tensor], sign: int = 1) -> float:
    return sign * math.log(logits(values).shape[-1])


def _rate(values: Tensor, logits: Callable[[Tensor], Tensor], e: float) -> Tensor:
    log_q = logits(values).log_softmax(-1)
    return (log_q.exp() * ((log_q.exp() + e).log() + _log_k(values, logits))).sum(-1)


def _swapped(values: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
    return -logits(values).log_softmax(-1).mean(-1) - _log_k(values, logits)


def _uniform(letter: str, name: str, logits: Callable[[Tensor], Tensor] = _as_drawn) -> tuple[Term, ...]:
    """Return KL(q, uniform) of logits, also with small numbers in the logarithms, and KL(uniform, q)."""
    rows: list[tuple[str, Any, str]] = [(added(e), partial(_rate, logits=logits, e=e), "") for e in (0.0, *EPSILONS)]
    rows.append(("", partial(_swapped, logits=logits), SWAPPED))
    log_k = {note: partial(_log_k, logits=logits, sign=sign) for note, sign in (("", 1), (SWAPPED, -1))}
    return tuple(
        Term(f"{name} = {{{letter}}}{more})", one, needs=letter, prior="uniform", log_k=log_k[note], note=note)
        for more, one, note in rows
    )


_SQUARES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the codebook": lambda codes, encoded: (codes - encoded.detach()) ** 2,
    "the commitment": lambda codes, encoded: (encoded - codes.detach()) ** 2,
}


def _vq(*parts: str) -> Term:
    """Return what a VQ-VAE, perhaps with a codebook of moving averages, has in place of a rate."""
    both = " and ".join(parts)
    return Term(
        f"{both}, of {{q}} and {{e}}", lambda *of: tuple(_SQUARES[part](*of) for part in parts), needs="qe",
        kind="none", parts=parts, note=f"it has {both} of a VQ-VAE, which is no rate",
    )  # fmt: skip


_KL = Term(
    "known to the caller, who hands in {k}", _as_drawn, needs="k", kind="open", parts=("{k}",),
    note="{k} is handed in and enters by its sum: if it is KL(q, p) in nats, it is the rate, and its weight gives beta",
)  # fmt: skip

# The names of arguments; a name that fits several patterns has the first of those roles that no third set takes.
_IMAGE = r"(x|recon|rec|dec|decoder|out|output|likelihood|p)"
_LATENT = r"(z|q|latent|enc|encoder)"
_SPREAD = r"(log_?|ln_?)?(var|sigma|scale|std|stddev|sd|variance|sigma_?sq|sigma_?2)"
_PRIOR = r"(prior|pz|p_z)"
_CODES = r"(\w*_)?(probs?|probabilit\w+|logits?|log_?probs?|log_?q\w*|q\w*|pi|alphas?|posterior|bits?|cat\w*|classes)"
_GATE = r"pi|\w*dropout\w*|zi\w*|gate\w*|\w*zero\w*|logit"
_COUNTS = ("xytms", "xyms")  # of zero-inflated counts
ROLES = {
    "a": Role("prior_loc", rf"{_PRIOR}_?(mu|means?|loc|m)|(mu|mean|loc|m)_?{_PRIOR}|(mu_p|p_mu)"),
    "b": Role("prior_spread", rf"{_PRIOR}_?({_SPREAD}|s)|({_SPREAD}|s)_?{_PRIOR}|{_SPREAD}_p", draw="positive"),
    "x": Role("x", r"x|[xy]_true|x_in|x_batch|targets?|data|inputs?|images?|imgs?|batch|orig\w*|labels|real|t"
              r"|ground_truth|gt", "x"),
    "t": Role("x_spread", rf"{_IMAGE}_{_SPREAD}\w*|{_SPREAD}_?{_IMAGE}|gamma|theta|disp\w*|px_r|total\w*|sigmas|r|phi"
              r"|precision", "x", "positive"),
    "y": Role("reconstruction", r"\w*(recon|decod|pred|generat)\w*|x_?(hat|rec|tilde|prime|logits?|mean|mu|out)"
              r"|(mean|mu|loc)_x|logits?|out\w*|px_rate|rate|y\w*", "x", "unit"),
    "z": Role("z", r"z|zs|z_?samples?|samples?|latents?|codes?"),
    "m": Role("loc", rf"({_LATENT}_?)?(mu|means?|loc|m)(_?{_LATENT})?"),
    "s": Role("spread", rf"({_LATENT}_?)?({_SPREAD}|logv|s|v|lv|ls|rho)(_?{_LATENT})?", draw="positive"),
    "c": Role("categorical_probs", _CODES, given=partial(torch.softmax, dim=-1), sides=("K", "NK"), beside=("xy",),
              terms=_uniform("c", "Categorical(probs")),
    "l": Role("categorical_logits", _CODES, sides=("K", "NK"), beside=("xy",),
              terms=_uniform("l", "Categorical(logits")),
    "g": Role("categorical_log_probs", _CODES, given=partial(torch.log_softmax, dim=-1), sides=("K", "NK"),
              beside=("xy",), terms=_uniform("g", "Categorical(log_probs")),
    "u": Role("bernoulli_probs", _CODES, given=torch.sigmoid, beside=("xy",),
              terms=_uniform("u", "Bernoulli(probs", _two)),
    "w": Role("bernoulli_logits", _CODES, beside=("xy",), terms=_uniform("w", "Bernoulli(logits", _two)),
    "k": Role("kl", r"(?!.*(weight|coef|beta|scale|anneal))(\w*(kl|diverg|regul|vq|commit)\w*|(latent|reg)_?loss|rate)",
              sides=("-", "", "L"),
              beside=("xy",), terms=(_KL,)),
    "q": Role("codes", r"\w*(quant|code|embed)\w*|z_?q", terms=(*map(_vq, _SQUARES), _vq(*_SQUARES))),
    "e": Role("encoded", r"\w*enc\w*|z?_?e|z|latents?|features?|h", beside=("xyq",)),
    "p": Role("zero_logits", _GATE, "x", beside=_COUNTS, terms=zero_inflated("p", "logits")),
    "d": Role("zero_probs", _GATE, "x", given=torch.sigmoid, beside=_COUNTS, terms=zero_inflated("d", "probs")),
    "o": Role("mask", r"\w*mask\w*|observed|known", "", "ones"),
}  # fmt: skip
# The roles of a loss. Three tensors are first read with a rate, and then as a likelihood with its spread.
SETS = (
    "xyms", "xymsz", "xymst", "xy", "ms", *(roles + letter for letter, role in ROLES.items() for roles in role.beside),
    "xyt", "msz", "xymstz", "xymsab", "xymszab",
)  # fmt: skip
OF_X, OF_Z = ("".join(letter for letter, role in ROLES.items() if role.part == part and letter != "x") for part in "xz")


def guesses(name: str) -> set[str]:
    """Return the roles that an argument has by its name."""
    lowered = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("_")
    fits = [letter for letter, role in ROLES.items() if re.fullmatch(role.pattern, lowered)]
    return {*fits[:1], *(letter for letter in fits if letter not in "xytmszab")}

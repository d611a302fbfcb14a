"""Any ELBO, recorded once and replayed at each step: the same loss and gradients without the Python that forms them."""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.runtime import apply_stack
from torch import Tensor, nn

from pvae.checks import Check, deferred
from pvae.handwritten import Terms
from pvae.perdatum import PerDatumELBO, PyroFunction
from pvae.recording import Function, record

__all__ = ["CompiledELBO"]

_PLAIN = frozenset({bool, int, float, str, tuple, torch.Size, type(None)})
_NUM_KEPT = 32  # recordings: each is a batch shape, a mode or an edit of the model


class _Recording(NamedTuple):
    """A step that can be replayed."""

    run: Function
    errors: list[Any]
    parameters: dict[str, Tensor]  # what Pyro's store held, by name
    sites: list[Any]
    kept: list[object]  # alive as long as their ids stand in a key


class CompiledELBO(ELBO):
    """An ELBO that `pyro.infer.SVI` takes as any other, and that runs model and guide only when it must.

    The first step runs them under Pyro's tracing and records the operators of loss and gradients; the steps after it
    replay these. A replay draws from torch's generator what the model would have drawn, so that the same seed gives the
    same training, to rounding. Another batch shape or dtype, a switch between training and evaluation, a parameter or a
    module that was replaced, a plain attribute of a module or of the ELBO that was set, another parameter store: each
    records anew. beta is an input. What is read from elsewhere (a global, an attribute of an object that is no module)
    is fixed by the recording.

    Args:
        elbo: one of pvae's, or any Pyro ELBO with a `differentiable_loss`.
        engine: "graph" or "inductor", of `recording.record`.
        precision: "fp32" or "bf16", of `recording.record`.

    Attributes:
        terms: of the last batch, if the ELBO has them.
        num_recordings: how often it has recorded.

    Raises:
        TypeError: the ELBO has no `differentiable_loss`.
        InputError: when used, if model or guide look at the values of tensors.
    """

    terms: Terms

    def __init__(self, elbo: ELBO, engine: str = "graph", precision: str = "fp32") -> None:
        super().__init__(num_particles=elbo.num_particles)  # type: ignore[no-untyped-call]
        if not hasattr(elbo, "differentiable_loss"):
            raise TypeError(f"{type(elbo).__name__} has no differentiable_loss: take one of pvae.build_elbo")
        self.elbo = elbo
        self.engine = engine
        self.precision = precision
        self.num_recordings = 0
        self._recordings: OrderedDict[object, _Recording] = OrderedDict()
        self._beta = torch.tensor(1.0, dtype=torch.float64)

    @property
    def beta(self) -> float:
        """The weight of the rate in the loss."""
        return float(getattr(self.elbo, "beta", 1.0))

    @beta.setter
    def beta(self, beta: float) -> None:
        self.elbo.beta = beta  # type: ignore[attr-defined]

    def loss_and_grads(self, model: PyroFunction, guide: PyroFunction, *inputs: Tensor) -> Tensor:
        """Return the loss after adding its gradients to the parameters (`SVI.step` calls it)."""
        recording = self._recording(model, guide, inputs, with_gradients=True)
        if recording is None:
            return torch.as_tensor(self.elbo.loss_and_grads(model, guide, *inputs))  # type: ignore[attr-defined]
        loss, gradients = self._replay(recording, inputs)
        for parameter, gradient in zip(recording.parameters.values(), gradients):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        store = pyro.get_param_store()
        for site in recording.sites:  # SVI steps what it sees pass by
            apply_stack({**site, "value": store[site["name"]]})  # type: ignore[typeddict-item]
        return loss

    def loss(self, model: PyroFunction, guide: PyroFunction, *inputs: Tensor) -> float:
        """Return the loss as a number (`SVI.evaluate_loss` calls it); Pyro's parameter store stays as it was."""
        recording = self._recording(model, guide, inputs, with_gradients=False)
        if recording is None:
            return float(self.elbo.loss(model, guide, *inputs))  # type: ignore[attr-defined]
        return self._replay(recording, inputs)[0].item()

    def _get_trace(self, *arguments: Any) -> Any:  # Pyro's base class wants one
        return self.elbo._get_trace(*arguments)

    def _replay(self, recording: _Recording, inputs: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        if self._beta != self.beta:
            self._beta.fill_(self.beta)
        with torch.no_grad():
            loss, distortion, rate, *rest = recording.run(self._beta, *inputs)
        for holds, error in zip(rest, recording.errors):
            if not holds:
                raise error()
        if isinstance(self.elbo, PerDatumELBO):
            self.terms = Terms(distortion, rate)
        return loss, rest[len(recording.errors) :]

    def _recording(
        self, model: PyroFunction, guide: PyroFunction, inputs: Sequence[Tensor], with_gradients: bool
    ) -> _Recording | None:
        """Return the recording of such a step; none if the parameters are yet to be made, which a step alone can do."""
        state, kept = _state_of([model, guide, self.elbo])
        shapes = tuple((x.shape, x.dtype, x.device, x.stride()) for x in inputs)
        key = (with_gradients, shapes, state)
        recording = self._recordings.get(key)
        if recording is None or (with_gradients and not _is_in_store(recording.parameters)):
            with _as_if_nothing([model, guide], inputs, with_gradients):
                if self._makes_parameters(model, guide, inputs, kept):
                    return None
                recording = self._record(model, guide, inputs, with_gradients)._replace(kept=kept)
            self._recordings[key] = recording
            self.num_recordings += 1
            if len(self._recordings) > _NUM_KEPT:
                self._recordings.popitem(last=False)
        return recording

    def _makes_parameters(
        self, model: PyroFunction, guide: PyroFunction, inputs: Sequence[Tensor], kept: Sequence[object]
    ) -> bool:
        """Whether a step makes parameters that were not there before, from pyro.param; if so they are unmade again."""
        store = pyro.get_param_store()
        known = {id(tensor) for tensor in (*store._params.values(), *kept)}
        with torch.no_grad():
            self.elbo.differentiable_loss(model, guide, *inputs)
        made = [name for name, tensor in store._params.items() if id(tensor) not in known]
        for name in made:
            del store[name]
        return bool(made)

    def _record(
        self, model: PyroFunction, guide: PyroFunction, inputs: Sequence[Tensor], with_gradients: bool
    ) -> _Recording:
        """Record the step: loss, terms and checks, and where they are wanted the gradients of all parameters met."""
        parameters: dict[str, Tensor] = {}
        sites: list[dict[str, Any]] = []
        checks: list[Check] = []

        def step(beta: Tensor, *inputs: Tensor) -> list[Tensor]:
            self.elbo.beta = beta  # type: ignore[attr-defined]
            with deferred() as found, poutine.trace(param_only=True) as capture:
                loss = self.elbo.differentiable_loss(model, guide, *inputs)
            nodes = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
            sites[:] = [{**site, "stop": False, "continuation": None} for site in nodes]
            checks[:] = found
            for site in sites:
                unconstrained = site["value"].unconstrained()
                if unconstrained.requires_grad:
                    parameters[site["name"]] = unconstrained
            terms = getattr(self.elbo, "terms", Terms(loss, loss))
            given = [loss.detach(), *terms[:2], *(check.condition for check in found)]
            return [*given, *torch.autograd.grad(loss, list(parameters.values()))] if with_gradients else given

        beta = self.beta
        try:
            run = record(step, [self._beta.clone(), *inputs], self.engine, self.precision)
        finally:
            self.elbo.beta = beta  # type: ignore[attr-defined]
        return _Recording(run, [check.error for check in checks], parameters, sites, [])


@contextlib.contextmanager
def _as_if_nothing(functions: Sequence[Any], inputs: Sequence[Tensor], with_gradients: bool) -> Iterator[None]:
    """Leave buffers (what BatchNorm counts, it would count once too often) and the random state as they were.

    What only evaluates leaves Pyro's store as it was, too; what trains must leave its parameters there.
    """
    modules = [part for function in functions for part in _parts_of(function) if isinstance(part, nn.Module)]
    before = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    devices = {x.device for x in inputs if x.device.type == "cuda"}
    store = contextlib.nullcontext() if with_gradients else pyro.get_param_store().scope()
    try:
        with torch.random.fork_rng(devices=list(devices)), poutine.block(), store:
            yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _is_in_store(parameters: dict[str, Tensor]) -> bool:
    held = pyro.get_param_store()._params
    return all(held.get(name) is parameter for name, parameter in parameters.items())


def _parts_of(function: Any) -> Iterator[object]:
    """Yield what a Pyro function is made of: itself, whose method it is, the modules that it closes over."""
    while isinstance(function, functools.partial):
        function = function.func
    yield getattr(function, "__func__", function)
    owner = getattr(function, "__self__", None)
    if owner is not None:
        yield owner
    for cell in getattr(function, "__closure__", None) or ():
        if isinstance(cell.cell_contents, nn.Module):
            yield cell.cell_contents


def _state_of(functions: Sequence[Any]) -> tuple[tuple[object, ...], list[object]]:
    """Return all that a recording of these hangs on, as something to compare, and the objects whose ids stand in it."""
    state: list[object] = [torch.get_default_dtype()]
    kept: list[object] = []
    for function in functions:
        for part in _parts_of(function):
            if isinstance(part, nn.Module):
                _add_module(part, state, kept)
            elif isinstance(part, ELBO):
                state += [value for name, value in vars(part).items() if name != "beta" and type(value) in _PLAIN]
            else:
                state.append(id(part))
                kept.append(part)
    return tuple(state), kept


def _add_module(module: nn.Module, state: list[object], kept: list[object]) -> None:
    kept.append(module)
    state.append(id(module))
    for name, value in vars(module).items():
        if name == "_parameters" or name == "_buffers":
            for tensor in value.values():
                if tensor is not None:
                    kept.append(tensor)
                    state += (id(tensor), tensor.dtype, tensor.device, tensor.requires_grad)
        elif name == "_modules":
            for child in value.values():
                if child is not None:
                    _add_module(child, state, kept)
        elif type(value) in _PLAIN:
            state.append(value)
        elif isinstance(value, dict):
            state += value  # the ids of hooks
        else:
            kept.append(value)
            state.append(id(value))

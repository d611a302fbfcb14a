"""An ELBO whose operators are recorded once and replayed at each step, without the Python of model and guide."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.runtime import apply_stack
from torch import Tensor, nn

from pvae.compile.adam import AdamUpdate, in_layout_of
from pvae.compile.graph import Function, check_engine, record
from pvae.compile.inductor import MayCompile
from pvae.core.errors import InputError
from pvae.core.terms import LossAndTerms, Terms
from pvae.core.tracing import deferred
from pvae.elbos.base import PerDatumELBO, PyroFunction

__all__ = ["Call", "CompiledELBO", "Prepare", "Recording", "Tensors"]

Tensors = tuple[Tensor, ...]  # that a step is given
Prepare = Callable[[Tensor], Iterable[Tensor]]

_MAX_RECORDINGS = 32  # one for each batch shape and mode of the modules


class Call(NamedTuple):
    """What is recorded: the gradients of model and guide and, with an `update`, a step of Adam too.

    Attributes:
        model: a Pyro function.
        guide: its guide.
        engine: "graph" or "inductor".
        prepare: converts the batch to the tensors that model and guide take, for instance an index to x and y.
        update: steps the parameters; without one, the gradients are returned.
    """

    model: PyroFunction
    guide: PyroFunction
    engine: str
    prepare: Prepare | None = None
    update: AdamUpdate | None = None


@dataclass(eq=False)
class Recording:
    """A recorded step, and everything that it depends on.

    Attributes:
        call: what is recorded.
        layout: shape, strides, dtype and device of each tensor of the batch.
        params: the parameters, by their names in Pyro's store.
        modes: the modules that ran, each with its mode: True in training.
        replay: the recorded function of beta and the batch.
        beta: the input for beta.
        errors: for each flag that the function returns, what makes the error to raise where it is false.
        sites: Pyro's sites of the parameters.
        trained: the parameters that get a gradient, in the order of the gradients.
    """

    call: Call
    layout: tuple[object, ...]
    params: dict[str, Tensor]
    modes: list[tuple[nn.Module, bool]]
    replay: Function
    beta: Tensor
    errors: list[Callable[[], Exception]]
    sites: list[Any]
    trained: list[Tensor]

    def matches(self, call: Call, layout: tuple[object, ...]) -> bool:
        """Whether this is a recording of such a call, with the parameters in Pyro's store and in the same modes."""
        if self.call != call or self.layout != layout:
            return False
        stored = dict(pyro.get_param_store().named_parameters())
        return all(stored.get(name) is one for name, one in self.params.items()) and all(
            module.training is mode for module, mode in self.modes
        )

    def play(self, beta: float, batch: Tensors) -> tuple[LossAndTerms, Sequence[Tensor]]:
        """Replay the step, and return loss and terms, and its further results.

        Raises:
            Exception: the error of the first check of the batch that fails.
        """
        self.beta.fill_(beta)
        with torch.no_grad():
            loss, distortion, rate, *rest = self.replay(self.beta, *batch)
        for flag, error in zip(rest, self.errors):
            if not flag:
                raise error()
        return LossAndTerms(loss, Terms(distortion, rate)), rest[len(self.errors) :]


class CompiledELBO(ELBO):
    """An ELBO for `pyro.infer.SVI` that records the operators of loss and gradients once, and replays these.

    The first step runs model and guide as usual and creates the parameters; the second one is recorded; later ones are
    replayed. A replay draws the same numbers from torch's generator as the model would, so the same seed gives the same
    training, to rounding. A step is recorded anew for other functions, for a batch of another shape or dtype, in
    another mode of a module (train or eval), and for other parameters in Pyro's store. Everything else that model and
    guide depend on (attributes, hooks, options of the ELBO, global variables, Pyro handlers around the step) must not
    change, as with `torch.compile`: a replay would not see it. Evaluations are not recorded.

    Args:
        elbo: one of `pvae.build_elbo`.
        engine: "graph" or "inductor", see `graph.record`; or "none": steps run as usual, and nothing is recorded.
        precision: "fp32" or "bf16", see `graph.record`.
        batch_size: inductor compiles steps on batches of this size only; others, such as the short last batch of an
            epoch, are only recorded. By default all are compiled.

    Attributes:
        num_recordings: how often it has recorded.

    Raises:
        InputError: it is another ELBO, or there is no such engine or precision; or when used, the step cannot be
            recorded, since its Python code reads the values of tensors.
    """

    def __init__(
        self, elbo: PerDatumELBO, engine: str = "graph", precision: str = "fp32", batch_size: int | None = None
    ) -> None:
        if not hasattr(elbo, "loss_and_terms"):
            raise InputError(f"a {type(elbo).__name__} cannot be recorded: take one of pvae.build_elbo")
        if engine != "none":
            check_engine(engine, precision)
        super().__init__(num_particles=elbo.num_particles)  # type: ignore[no-untyped-call]
        self.elbo, self.engine, self.precision, self.batch_size = elbo, engine, precision, batch_size
        self.num_recordings = 0
        self._recordings: list[Recording] = []
        self._begun: set[tuple[PyroFunction, PyroFunction]] = set()  # model and guide whose parameters exist

    def find(
        self,
        call: Call,
        batch: Tensors,
        is_begun: bool = False,
        may_compile: MayCompile = lambda num_operators: True,
    ) -> Recording | None:
        """Return the recording of such a call, recorded now if there is none; None if it must be run as usual.

        Args:
            call: what is recorded.
            batch: of `call.prepare`, or of model and guide.
            is_begun: the parameters exist, so that a first step can be recorded too.
            may_compile: as for `graph.record`.

        Raises:
            RecordingError: (an InputError) the step cannot be recorded or compiled.
        """
        if call.engine == "none":
            return None
        layout = tuple((one.shape, one.stride(), one.dtype, one.device) for one in batch)
        for one in self._recordings:
            if one.matches(call, layout):
                return one
        functions = call.model, call.guide
        if functions not in self._begun:
            self._begun.add(functions)
            if not is_begun:
                return None
        recording = self._record(call, layout, batch, may_compile)
        self.num_recordings += 1
        self._recordings = [*self._recordings[1 - _MAX_RECORDINGS :], recording]
        return recording

    def backward(
        self, model: PyroFunction, guide: PyroFunction, *batch: Tensor, beta: float | None = None
    ) -> LossAndTerms:
        """Add the gradients of the loss to the parameters, and return loss and terms, as `PerDatumELBO.backward`."""
        recording = self.find(Call(model, guide, self.engine_for(batch[0])), batch)
        if recording is None:
            return self.elbo.backward(model, guide, *batch, beta=beta)
        result, gradients = recording.play(self.weight(beta), batch)
        for parameter, gradient in zip(recording.trained, gradients):
            before = parameter.grad
            parameter.grad = in_layout_of(parameter, gradient) if before is None else before + gradient
        store = pyro.get_param_store()
        for site in recording.sites:  # SVI steps the parameters whose sites it sees
            site = {**site, "value": store[site["name"]], "stop": False, "continuation": None}
            apply_stack(site)  # type: ignore[arg-type]
        return result

    def loss_and_grads(self, *arguments: Any, **options: Any) -> Tensor:
        """Return the loss after adding its gradients to the parameters; `SVI.step(*batch, beta=...)` calls it."""
        return self.backward(*arguments, **options).loss

    def evaluate(self, *arguments: Any, **options: Any) -> LossAndTerms:
        """Return loss and terms, as `PerDatumELBO.evaluate` does."""
        return self.elbo.evaluate(*arguments, **options)

    def loss(self, *arguments: Any, **options: Any) -> float:
        """Return the loss as a number; `SVI.evaluate_loss` calls it."""
        return self.elbo.loss(*arguments, **options)

    def _get_trace(self, *arguments: Any) -> Any:  # required by Pyro's base class
        return self.elbo._get_trace(*arguments)

    def engine_for(self, batch: Tensor) -> str:
        """Return the engine of steps on such a batch: not "inductor" if it has another size than `batch_size`."""
        return self.engine if self.engine == "none" or self.batch_size in (None, len(batch)) else "graph"

    def weight(self, beta: float | None) -> float:
        """Return beta, or the ELBO's own if it is None."""
        return float(self.elbo.beta if beta is None else beta)

    def _record(self, call: Call, layout: tuple[object, ...], batch: Tensors, may_compile: MayCompile) -> Recording:
        """Run the step once, undo what it wrote, and return its recording."""
        found: dict[str, Any] = {}  # fields of the recording

        def step(beta: Tensor, *batch: Tensor) -> list[Tensor]:
            with deferred() as checks, poutine.block(), poutine.trace(param_only=True) as capture:
                given = batch if call.prepare is None else call.prepare(*batch)
                loss, terms = self.elbo.loss_and_terms(call.model, call.guide, *given, beta=beta)
            sites: list[Any] = [site for site in capture.trace.nodes.values() if site["type"] == "param"]
            params: dict[str, Tensor] = {site["name"]: site["value"].unconstrained() for site in sites}
            # Unique by identity, since one tensor may have two names.
            wanted = list({id(one): one for one in params.values() if one.requires_grad}.values())
            all_gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
            trained = [one for one, gradient in zip(wanted, all_gradients) if gradient is not None]
            gradients: list[Tensor] = [gradient for gradient in all_gradients if gradient is not None]
            flags = [check.holds(check.x) for check in checks]
            found.update(params=params, sites=sites, trained=trained, errors=[check.error for check in checks])
            rest = gradients if call.update is None else call.update.apply(loss, trained, gradients, flags)
            return [loss.detach(), terms.distortion, terms.rate, *flags, *rest]

        beta = torch.ones((), dtype=torch.float64, device=batch[0].device)
        with _undone(call.update.written() if call.update else [], batch[0].device) as modules:
            replay = record(step, [beta, *batch], call.engine, self.precision, may_compile)
        modes = [(module, module.training) for module in modules]
        return Recording(call=call, layout=layout, modes=modes, replay=replay, beta=beta, **found)


@contextlib.contextmanager
def _undone(tensors: Sequence[Tensor], device: torch.device) -> Iterator[list[nn.Module]]:
    """Restore these tensors, the buffers of modules that run in the block, and the device's random state at its end.

    Yields:
        A list, to which each module that runs is added.
    """
    modules: list[nn.Module] = []
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def collect(module: nn.Module, _: Any) -> None:
        if not any(module is known for known in modules):
            modules.append(module)
            before.extend((buffer, buffer.clone()) for buffer in module.buffers(recurse=False))

    hook = nn.modules.module.register_module_forward_pre_hook(collect)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield modules
    finally:
        hook.remove()
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)

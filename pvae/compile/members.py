"""Several VAEs trained at once: the recorded step of one of them, mapped by `torch.vmap` over stacked parameters."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, fx

from pvae.compile.compiled_svi import CompiledSVI, Done, Step
from pvae.compile.graph import Function, RecordingError, graph_of, record
from pvae.compile.inductor import MayCompile, lifted
from pvae.core.batch import Terms
from pvae.core.errors import NotFiniteError, brief
from pvae.core.random_state import restore_rng_state, rng_state

__all__ = ["Members", "MembersDone"]

_DRAWN_AT_ONCE = 2**24  # random numbers that are held in memory
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names in malloc.h
_Batch = tuple[Tensor]  # the index


class MembersDone(NamedTuple):
    """What each member has done; `error` is one of a member if none of them goes on."""

    members: list[Done]
    error: Exception | None
    seconds: float = 0.0


class _Step(NamedTuple):
    """A recorded step of all members; and, of one member, what it draws from torch's generator."""

    replay: Function
    draw: Function
    num_drawn: int


class Members:
    """Takes the steps of several `CompiledSVI` at once, each as if it were alone, to rounding.

    Parameters and Adam's state of all members are rows of stacked tensors; those of each member become views of its
    row. The step of the first member is recorded and mapped over the rows. Each member draws random numbers from its
    own random state, some steps ahead. A member whose step is bad is held at its state before that step, while the
    others go on.

    Args:
        svis: of VAEs of one architecture, on the same data. A step takes the index of a batch.
        tensors: further tensors that the steps of each member read, such as buffers and labels, in the same order.
        engine: "graph" or "inductor", see `graph.record`.

    Attributes:
        is_held: 1 for each member that stays as it is, else 0, (S,).
        random: the random state of each member.
        num_recordings: how often it has recorded.
    """

    def __init__(self, svis: Sequence[CompiledSVI], tensors: Sequence[Sequence[Tensor]], engine: str = "graph") -> None:
        self.svis, self.engine, self.num_recordings = svis, engine, 0
        self._parameters = svis[0].update.parameters
        sizes, like = [one.numel() for one in self._parameters], self._parameters[0].detach()
        # The parameters of all members, Adam's two means, and the number of steps.
        self._stacked = [like.new_zeros(len(svis), sum(sizes)) for _ in range(3)]
        self._taken = torch.zeros(len(svis), device=like.device)
        self.is_held = torch.zeros(len(svis), device=like.device)
        for member, svi in enumerate(svis):
            rows = [flat[member].split(sizes) for flat in self._stacked]
            for parameter, *row in zip(svi.update.parameters, *rows):
                state = svi.update.state_of(parameter)
                olds = (parameter.detach(), state["exp_avg"], state["exp_avg_sq"])
                views = [new.view(old.shape).copy_(old) for old, new in zip(olds, row)]
                parameter.data, state["exp_avg"], state["exp_avg_sq"] = views
                self._taken[member].copy_(torch.maximum(self._taken[member], state["step"]))
                state["step"] = self._taken[member]
        self.random = [rng_state(like.device)] * len(svis)
        _keep_freed_memory()
        own = [list(same) for same in zip(*tensors)]
        self._own = {
            id(same[0]): torch.stack(same) for same in own if not all(torch.equal(same[0], one) for one in same)
        }
        self._recorded: dict[tuple[str, torch.Size], _Step] = {}

    def run(self, batches: Sequence[_Batch], values: Sequence[Sequence[tuple[float, float]]]) -> MembersDone:
        """Take steps; hold each member from its first bad step on.

        Args:
            batches: of each step the index, (B, S), a column for each member.
            values: of each step the learning rate and the weight of the rate, for each member.

        Raises:
            RecordingError: (an InputError) a step cannot be recorded, or not mapped over the members.
        """
        rows = torch.stack([svi.update.rows(own) for svi, own in zip(self.svis, zip(*values))], 1)
        indices = [index.T.contiguous() for (index,) in batches]
        steps = [self._step(self.engine, row, index) for row, index in zip(rows, indices)]
        were_held, started = self.is_held.tolist(), list(self.random)
        log = list[Sequence[Tensor]]()
        with torch.no_grad():
            while len(log) < len(steps):
                part = slice(len(log), len(log) + max(1, _DRAWN_AT_ONCE // (1 + steps[len(log)].num_drawn)))
                given = steps[part], rows[part], indices[part]
                drawn = [self._draw(member, *given) for member in range(len(self.svis))]
                for step, row, index, *noise in zip(*given, *drawn):
                    log.append(step.replay(*map(torch.stack, zip(*noise)), row, index))
        losses, distortions, rates, are_held = zip(*log)
        loss, held = torch.stack(losses).double().cpu(), torch.stack(are_held).bool().cpu()
        distortion, rate, found = torch.cat(distortions, 1), torch.cat(rates, 1), list[Done]()
        for member, was_held in enumerate(were_held):
            good, error = int((~held[:, member]).sum()), None
            if good < len(log) and not was_held:
                self.random[member] = started[member]
                self._draw(member, steps[:good], rows, indices)
                error = self._error(member, rows[good][member], indices[good][member], loss[good, member])
            num_data = sum(len(index[0]) for index in indices[:good])
            found.append(
                Done(loss[:good, member], Terms(distortion[member, :num_data], rate[member, :num_data]), error)
            )
        last = next((one.error for one in found if one.error), None) if held[-1].all() else None
        return MembersDone(found, last)

    def use_inductor(self, batch: _Batch, may_compile: MayCompile) -> None:
        """Compile steps on such batches from now on; as `CompiledSVI.use_inductor`."""
        row = torch.zeros(len(self.svis), 4, dtype=torch.float64, device=self.is_held.device)
        self._step("inductor", row, batch[0].T.contiguous(), may_compile)
        self.engine = "inductor"

    def _draw(
        self, member: int, steps: Sequence[_Step], rows: Tensor, indices: Sequence[Tensor]
    ) -> list[Sequence[Tensor]]:
        """Return what a member draws in these steps, from its random state."""
        restore_rng_state(self.random[member], rows.device)
        drawn = [step.draw(row[member], index[member]) for step, row, index in zip(steps, rows, indices)]
        self.random[member] = rng_state(rows.device)
        return drawn

    def _error(self, member: int, row: Tensor, index: Tensor, loss: Tensor) -> Exception:
        """Return why the step of a member is bad, which takes it by itself, held, with its own random state.

        It may be good there, by rounding.
        """
        step, update = Step(self.svis[member], "none", ()), self.svis[member].update
        with update.held(), pyro.validation_enabled(False), pyro.get_param_store().scope():
            restore_rng_state(self.random[member], index.device)
            found, _, _, _, flags, are_finite = step(row, (index,))
        error = step.error(found, flags, are_finite)
        return error or NotFiniteError(f"the loss is {loss.item()}, or a gradient is not finite")

    def _step(
        self, engine: str, row: Tensor, index: Tensor, may_compile: MayCompile = lambda num_operators: True
    ) -> _Step:
        """Return the step on such batches, recorded now if there is no recording."""
        if self.svis[0].batch_size not in (None, index.shape[1]):
            engine = "graph"
        if (engine, index.shape) not in self._recorded:
            with torch.random.fork_rng(devices=[index.device] if index.is_cuda else []):
                self._recorded[engine, index.shape] = self._record(engine, row, index, may_compile)
            self.num_recordings += 1
        return self._recorded[engine, index.shape]

    def _record(self, engine: str, row: Tensor, index: Tensor, may_compile: MayCompile) -> _Step:
        first, is_held = Step(self.svis[0], "graph", ()), self.is_held.clone()
        with pyro.get_param_store().scope():
            graph = graph_of(first.gradients, [row[0], index[0]])
        if first.buffers:
            raise RecordingError("a module changes its buffers in each step, as BatchNorm does")
        for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default):
            node.kwargs = {}  # torch.vmap does not know channels_last, which changes only the speed
        own = {id(one) for one in self._parameters} | self._own.keys()
        draws, noise = _draws(graph, own)
        rest, attributes = lifted(graph)
        in_dims = (*[0] * len(noise), 0, 0, *(0 if id(one) in own else None for one in attributes))
        mapped, sizes = torch.vmap(lambda *inputs: rest(*inputs), in_dims), [one.numel() for one in self._parameters]

        def step(*inputs: Tensor) -> list[Tensor]:
            rows, values = inputs[-2], self._stacked[0].split(sizes, 1)
            shaped = {id(one): flat.view(-1, *one.shape) for one, flat in zip(self._parameters, values)}
            read = [(self._own | shaped).get(id(one), one) for one in attributes]
            loss, distortion, rate, flags, *gradients = mapped(*inputs, *read)
            found = {id(one): gradient.reshape(len(rows), -1) for one, gradient in zip(first.trained, gradients)}
            parts = [found.get(id(one), torch.zeros_like(flat)) for one, flat in zip(self._parameters, values)]
            self._update(rows, torch.cat(parts, 1), flags.all(1), is_fused=engine != "inductor")
            return [loss, distortion, rate, self.is_held.clone()]

        self.is_held.fill_(1)
        stacked = [one.expand(len(row), *one.shape).clone() for one in noise]
        try:
            with _without_fallback_warnings():
                replay = record(step, [*stacked, row, index], engine, may_compile)
        except RecordingError as error:
            if engine != "graph":
                raise
            raise RecordingError(f"torch.vmap cannot map the step ({brief(error.__cause__ or error)})") from error
        finally:
            self.is_held.copy_(is_held)
        return _Step(replay, draws.forward, sum(one.numel() for one in stacked))

    def _update(self, rows: Tensor, gradient: Tensor, is_good: Tensor, is_fused: bool) -> None:
        """Take a step of Adam for each member that is not held, and hold those whose step is bad."""
        update, norm = self.svis[0].update, torch.linalg.vector_norm(gradient, dim=1)
        self.is_held.logical_or_(~(is_good & norm.isfinite()))
        self._taken.add_(1 - self.is_held)
        if update.clip_norm:
            gradient = gradient * (update.clip_norm / (norm + 1e-6)).clamp(max=1.0).unsqueeze(1)
        values, means, squares = self._stacked
        stacked = (values, gradient, means, squares, self._taken)
        if is_fused:
            for *own, row, stays in zip(*(one.unbind() for one in (*stacked, rows, self.is_held))):
                update.move([[one] for one in own], row, stays, is_fused)
        else:
            update.move([[one] for one in stacked], rows.T.unsqueeze(2), self.is_held.unsqueeze(1), is_fused)


@contextlib.contextmanager
def _without_fallback_warnings() -> Iterator[None]:
    """Let torch.vmap not warn of operators that it maps member by member, such as `log_ndtr`."""
    functorch: Any = torch._C._functorch  # torch has no public name for it
    set_enabled = functorch._set_vmap_fallback_warning_enabled
    set_enabled(False)
    try:
        yield
    finally:
        set_enabled(True)


def _keep_freed_memory() -> None:
    """Let glibc keep memory that is freed: stacked tensors are so large that it would return it to the system.

    To get it back page by page in every step takes a quarter of the step.
    """
    with contextlib.suppress(AttributeError, TypeError, OSError):  # another C library
        set_option = ctypes.CDLL(None).mallopt
        set_option(_TRIM_THRESHOLD, 2**30)
        set_option(_MMAP_THRESHOLD, 2**25)  # the largest that it takes


def _draws(graph: fx.GraphModule, own: set[int]) -> tuple[fx.GraphModule, list[Tensor]]:
    """Take the draws out of a recorded step: its further inputs, in front of the others, are what was drawn.

    Args:
        graph: is changed.
        own: identities of the tensors that differ between members, or change from step to step.

    Returns:
        The graph of the draws, and examples of them.

    Raises:
        RecordingError: a draw depends on such a tensor.
    """
    nodes, drawn = list(graph.graph.nodes), list[fx.Node]()
    needed = set[fx.Node]()
    for node in reversed(nodes):
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            drawn.insert(0, node)
            needed.add(node)
        if node in needed:
            needed.update(node.all_input_nodes)
    if any(node.op == "get_attr" and id(getattr(graph, str(node.target))) in own for node in needed):
        raise RecordingError("random numbers are drawn whose distribution depends on parameters")
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output([copies[node] for node in drawn])
    draws = fx.GraphModule(graph, part)
    for number, node in enumerate(drawn):
        with graph.graph.inserting_before(nodes[0]):
            node.replace_all_uses_with(graph.graph.placeholder(f"drawn_{number}"))
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    values = [node.meta["val"] for node in drawn]
    return draws, [torch.zeros(one.shape, dtype=one.dtype, device=one.device) for one in values]

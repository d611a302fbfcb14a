"""Every private name of torch that pvae uses, with the reason; no other module uses one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributions import Distribution, Transform
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

__all__ = [
    "OLDEST_FOR_INDUCTOR",
    "TorchDispatchMode",
    "compile_package",
    "empty_transform_caches",
    "foreach_add_",
    "foreach_norm",
    "foreach_sub_",
    "fused_adam_",
    "has_gradient_hooks",
    "has_step_hooks",
    "hooks_of",
    "is_observed",
    "linear_by_onednn",
    "load_package",
    "make_fx",
    "validate_sample",
    "validated",
    "validates_arguments",
]

# With torch 2.12 a step compiled by inductor trains differently from the other engines (the ELBO after two epochs
# differs by 2e-4), and packages cannot be loaded from a folder. No version between 2.12 and 2.14 was tried.
OLDEST_FOR_INDUCTOR = "2.14"

# One operator for a list of tensors, so that a recording of Adam has a few operators for any number of parameters.
foreach_add_, foreach_sub_, foreach_norm = torch._foreach_add_, torch._foreach_sub_, torch._foreach_norm

# The operator that torch's fused Adam calls, so that a recorded step gives the same result bit for bit.
fused_adam_: Any = torch._fused_adam_

# oneDNN's product of float32 matrices (None if torch was built without it): with AVX-512 up to twice as fast as BLAS.
linear_by_onednn: Any = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)

# A distribution that was made with validation on calls these in log_prob; a recording leaves them out.
validate_sample: Any = Distribution._validate_sample
validated: Any = (Tensor.all, torch._is_all_true)


def is_observed(*tensors: Tensor) -> bool:
    """Whether something observes the operators on these tensors and does not know oneDNN's, so that torch's are used.

    Observers are tensor subclasses, torch.compile, autocast, torch.jit.trace, dispatch modes without
    `lets_products_pass`, torch.func and forward-mode differentiation.
    """
    try:
        return (
            any(type(one) not in (Tensor, nn.Parameter) for one in tensors)
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
            or torch._C._is_tracing()
            or not all(getattr(mode, "lets_products_pass", False) for mode in _get_current_dispatch_mode_stack())
            or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
            or torch._C._functorch.peek_interpreter_stack() is not None
            or forward_ad._current_level >= 0
        )
    except AttributeError:  # this version of torch lacks one of the private names
        return True


def validates_arguments() -> bool:
    """Return whether distributions check their arguments."""
    return bool(Distribution._validate_args)


def hooks_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the keys of the hooks on a tensor's gradient; a step is recorded anew if one is added or removed."""
    return tuple(tensor._backward_hooks or ())


def has_gradient_hooks(parameter: Tensor) -> bool:
    """Whether the parameter has hooks that run after its gradient is accumulated, which a replay would not call."""
    return bool(getattr(parameter, "_post_accumulate_grad_hooks", None))


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether the optimiser has hooks that run at each step, which a replay would not call."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


@contextmanager
def empty_transform_caches() -> Iterator[None]:
    """Let each transform start this block with an empty cache, and give it its cache back at the end.

    A transform keeps the tensors of its last call. A run that found those of an earlier one would read values without
    the operators that compute them.
    """
    caches: dict[int, tuple[Any, dict[str, Any]]] = {}  # by id of the transform

    def emptied(method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
        def call(transform: Any, x: Tensor) -> Tensor:
            if id(transform) not in caches:
                cache = {name: value for name, value in vars(transform).items() if name.startswith("_cache")}
                caches[id(transform)] = transform, cache
                if "_cached_x_y" in cache:
                    transform._cached_x_y = None, None
            return method(transform, x)

        return call

    methods: Any = Transform.__call__, Transform._inv_call
    Transform.__call__, Transform._inv_call = map(emptied, methods)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Transform.__call__, Transform._inv_call = methods  # type: ignore[method-assign]
        for transform, cache in caches.values():
            vars(transform).update(cache)


def compile_package(program: torch.export.ExportedProgram, package: Any, options: dict[str, Any]) -> None:
    """Compile a program ahead of time by inductor, and write the package, which another process can load."""
    torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=options)


def load_package(folder: str) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return the function of an unpacked package; torch's `aoti_load_package` warns when it is given a folder."""
    run: Callable[[list[Tensor]], list[Tensor]]
    run = torch._C._aoti.AOTIModelPackageLoader(folder, "model", False, 1, -1).boxed_run
    return run

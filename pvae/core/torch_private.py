"""Every private name of torch that pvae uses, with what it buys; no other module reaches one.

Where a version of torch may lack a name, what is here is None or says so, and whoever uses it has a form without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "OLDEST_FOR_INDUCTOR",
    "UNREAD_BY_A_PASS",
    "TorchDispatchMode",
    "compile_package",
    "foreach_add_",
    "foreach_norm",
    "foreach_sub_",
    "fused_adam_",
    "has_gradient_hooks",
    "has_step_hooks",
    "hooks_of",
    "is_followed",
    "linear_by_onednn",
    "load_package",
    "make_fx",
]

# By torch 2.12 what inductor compiles trains otherwise than the other engines (the ELBO after two epochs by 2e-4), and
# its packages are not loaded from a folder; 2.14 is the oldest that was tried since.
OLDEST_FOR_INDUCTOR = "2.14"

# `make_fx` records the operators of a function and of its gradients: a replay runs them without model and guide.
# `TorchDispatchMode` sees each operator that runs: several processes draw the noise of one.

# One operator for a list of tensors: a recording of Adam has a few, whatever the number of parameters.
foreach_add_, foreach_sub_, foreach_norm = torch._foreach_add_, torch._foreach_sub_, torch._foreach_norm

# Adam's update as the one operator that torch's own takes, so that a recorded step trains bit for bit alike.
fused_adam_: Any = torch._fused_adam_ if hasattr(torch.ops.aten._fused_adam_, "tensor_lr") else None

# oneDNN's product of float32 matrices: with AVX-512 up to twice as fast as that of torch's BLAS.
linear_by_onednn: Any = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)

# Attributes of a module that no pass reads, or reads only beside hooks: a recording need not compare them.
UNREAD_BY_A_PASS = frozenset(
    name for name in vars(nn.Module()) if "state_dict" in name or "_set" in name or "_with_" in name
)

_CAN_TELL_WHO_FOLLOWS = (
    hasattr(torch._C, "_is_tracing")
    and hasattr(torch._C, "_len_torch_dispatch_stack")
    and hasattr(torch._C, "_get_dispatch_stack_at")
    and hasattr(torch._C._functorch, "peek_interpreter_stack")
    and hasattr(torch._ops, "_len_torch_dispatch_stack_pre_dispatch")
    and hasattr(forward_ad, "_current_level")
)


def is_followed(*tensors: Tensor) -> bool:
    """Whether something follows the operators on these tensors, and would not know oneDNN's: torch's own are taken."""
    return (
        not _CAN_TELL_WHO_FOLLOWS
        or any(type(one) not in (Tensor, nn.Parameter) for one in tensors)
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch._C._is_tracing()
        or _is_dispatched_to_a_follower()
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def _is_dispatched_to_a_follower() -> bool:
    """Whether a dispatch mode looks at the operators; one that lets products pass says so of itself."""
    modes = map(torch._C._get_dispatch_stack_at, range(torch._C._len_torch_dispatch_stack()))
    return not all(getattr(mode, "lets_products_pass", False) for mode in modes)


def hooks_of(tensor: Tensor) -> tuple[int, ...]:
    """Return what names the hooks on a tensor's gradient: a step is recorded anew where one comes or goes."""
    return tuple(tensor._backward_hooks or ())


def has_gradient_hooks(parameter: Tensor) -> bool:
    """Whether something runs once its gradient is there, which a replay would leave out."""
    return bool(getattr(parameter, "_post_accumulate_grad_hooks", None))


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether something runs at each step of the optimiser, which a replay would leave out."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def compile_package(program: torch.export.ExportedProgram, package: Any, options: dict[str, Any]) -> None:
    """Write what inductor compiles of a program ahead of time: the next process loads it and does not compile."""
    torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=options)


def load_package(folder: str) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return the function of an unpacked package; torch's `aoti_load_package` would warn that it is a folder."""
    run: Callable[[list[Tensor]], list[Tensor]]
    run = torch._C._aoti.AOTIModelPackageLoader(folder, "model", False, 1, -1).boxed_run
    return run

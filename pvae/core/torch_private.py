"""Every private name of torch that pvae uses, with the reason; no other module uses one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "OLDEST_FOR_INDUCTOR",
    "TorchDispatchMode",
    "compile_package",
    "has_bfloat16",
    "linear_by_onednn",
    "load_package",
    "make_fx",
    "validates_arguments",
]

# With torch 2.12 a step compiled by inductor trains differently from the other engines (the ELBO after two epochs
# differs by 2e-4), and packages cannot be loaded from a folder. No version between 2.12 and 2.14 was tried.
OLDEST_FOR_INDUCTOR = "2.14"

# oneDNN's product of float32 matrices (None if torch was built without it): with AVX-512 up to twice as fast as BLAS.
linear_by_onednn: Any = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)


def validates_arguments() -> bool:
    """Return whether distributions check their arguments."""
    return bool(Distribution._validate_args)


def has_bfloat16() -> bool:
    """Return whether torch multiplies bfloat16 matrices on this CPU by the CPU's own instructions."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def compile_package(program: torch.export.ExportedProgram, package: Any, options: dict[str, Any]) -> None:
    """Compile a program ahead of time by inductor, and write the package, which another process can load."""
    torch._inductor.aoti_compile_and_package(program, package_path=package, inductor_configs=options)


def load_package(folder: str) -> Callable[[list[Tensor]], list[Tensor]]:
    """Return the function of an unpacked package; torch's `aoti_load_package` warns when it is given a folder."""
    run: Callable[[list[Tensor]], list[Tensor]]
    run = torch._C._aoti.AOTIModelPackageLoader(folder, "model", False, 1, -1).boxed_run
    return run

"""Encoder and decoder of a VAE as ONNX files, which other programs run without Python."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pvae.core.errors import InputError, brief
from pvae.core.files import write_whole
from pvae.core.torch_private import validates_arguments
from pvae.vae import VAE

__all__ = ["Exported", "export"]

_MOST_DIFFERENCE = 1e-5
_TRACED, _CHECKED = 3, 32  # images in the batch that is traced, and in the larger one that is compared
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX file.

    Args:
        path: the file.
        inputs: name and shape of the input.
        outputs: names and shapes of the outputs.
        difference: the largest difference between an output of onnxruntime and torch's, relative to its largest value
            if that is above 1.
    """

    path: Path
    inputs: str
    outputs: str
    difference: float

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.path}: {self.inputs} -> {self.outputs}, equal to torch's to {self.difference:.1e}"


class _Part(nn.Module):
    """A VAE's encoder or decoder, as a module of one input."""

    def __init__(self, vae: VAE, outputs: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.vae, self.outputs = vae, outputs

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        return self.outputs(batch)


def export(vae: VAE, image_shape: Sequence[int], folder: Path) -> list[Exported]:
    """Write encoder.onnx, from images to mean and standard deviation of q(z | x), and decoder.onnx, from z to a mean.

    Both are compared with torch, on batches of other sizes than the one that they were traced with, before they are
    written.

    Args:
        vae: in eval mode, on the CPU.
        image_shape: (C, H, W) of the images that the VAE takes.
        folder: where to write; it must exist.

    Raises:
        InputError: a package is missing, q(z | x) has no mean or standard deviation in closed form, torch cannot
            export the VAE, or the outputs differ by more than 1e-5.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'the export needs {", ".join(missing)}: pip install -e ".[export]"')
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        x = torch.rand(_CHECKED, *image_shape)

        def encode(x: Tensor) -> tuple[Tensor, ...]:
            q = vae.q_z(x)  # without the check of its pixels, which depends on their values
            return q.mean, q.stddev

        try:
            z, _ = encode(x)
        except NotImplementedError:
            raise InputError(
                "q(z | x) has no mean and standard deviation in closed form, as with a flow or several stochastic "
                "layers, and cannot be exported"
            ) from None
        parts = [
            _exported(_Part(vae, encode).eval(), x, "x", ("loc", "scale"), folder / "encoder.onnx"),
            _exported(_Part(vae, lambda z: (vae.p_x(z).mean,)).eval(), z, "z", ("mean",), folder / "decoder.onnx"),
        ]
    for content, result in parts:
        write_whole(result.path, content)
    return [result for _, result in parts]


def _exported(
    module: nn.Module, batch: Tensor, name: str, outputs: Sequence[str], path: Path
) -> tuple[bytes, Exported]:
    """Return the content of the ONNX file of a module, and its description."""
    import onnxruntime

    content = io.BytesIO()
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                module,
                (batch[:_TRACED],),
                input_names=[name],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.model.producer_name = "pvae"  # by which `core.files` recognises the file
            program.save(content)
        session = onnxruntime.InferenceSession(content.getvalue())
        difference = max(_difference(module, session, part) for part in (batch, batch[:1]))
    except Exception as error:  # torch and onnxruntime raise errors of many types
        reason = brief(error.__cause__ or error).split(" : ")[0]
        raise InputError(f"torch {torch.__version__} cannot export {path.stem} as ONNX ({reason})") from None
    if not difference <= _MOST_DIFFERENCE:
        raise InputError(f"the outputs of {path.name} differ from torch's by {difference:.1e}: nothing is written")
    shapes = [f"{output} {_shape(one)}" for output, one in zip(outputs, module(batch))]
    described = Exported(path=path, inputs=f"{name} {_shape(batch)}", outputs=", ".join(shapes), difference=difference)
    return content.getvalue(), described


def _difference(module: nn.Module, session: Any, batch: Tensor) -> float:
    """Return the largest difference of onnxruntime's outputs, relative to torch's largest value if that is above 1."""
    theirs = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    return max(
        (ours - torch.from_numpy(other)).abs().max().item() / max(1.0, ours.abs().max().item())
        for ours, other in zip(module(batch), theirs)
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what torch's exporter prints, warns of and logs, and let distributions accept any parameters.

    ONNX has no operator for the checks of their values.
    """
    before, validates = logging.root.manager.disable, validates_arguments()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        Distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            logging.disable(before)
            Distribution.set_default_validate_args(validates)


def _shape(batch: Tensor) -> str:
    return f"({', '.join(['N', *map(str, batch.shape[1:])])})"

"""Encoder and decoder of a VAE as ONNX files, which other programs run without Python."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pvae.core.errors import InputError, brief
from pvae.core.files import write_whole
from pvae.core.random_state import seeded
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


def export(vae: VAE, datum_shape: Sequence[int], folder: Path) -> list[Exported]:
    """Write encoder.onnx, from images to mean and standard deviation of q(z | x), and decoder.onnx, from z to a mean.

    Both are compared with torch, on batches of other sizes than the one that they were traced with, before they are
    written.

    Args:
        vae: in eval mode, on the CPU.
        datum_shape: (C, H, W) of the images that the VAE takes.
        folder: where to write; it must exist.

    Raises:
        InputError: a package is missing, q(z | x) has no mean or standard deviation in closed form, torch cannot
            export the VAE, or the outputs differ by more than 1e-5.
    """
    if vae.takes_labels:
        raise InputError("a VAE with labels cannot be exported as ONNX yet: use pvae.load")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'the export needs {", ".join(missing)}: pip install -e ".[export]"')

    def encode(x: Tensor) -> tuple[Tensor, ...]:
        q = vae.q_z(x)  # without the check of its pixels, which depends on their values
        return q.mean, q.stddev

    def decode(z: Tensor) -> tuple[Tensor, ...]:
        return (vae.p_x(z).mean,)

    with seeded(0, torch.device("cpu")), torch.no_grad():
        x = torch.rand(_CHECKED, *datum_shape)
        try:
            z, _ = encode(x)
        except NotImplementedError:
            raise InputError(
                "q(z | x) has no mean and standard deviation in closed form, as with a flow or several stochastic "
                "layers, and cannot be exported"
            ) from None
        parts = [
            _exported(_Part(vae, encode).eval(), x, "x", ("loc", "scale"), folder / "encoder.onnx"),
            _exported(_Part(vae, decode).eval(), z, "z", ("mean",), folder / "decoder.onnx"),
        ]
    for content, result in parts:
        write_whole(result.path, content)
    return [result for _, result in parts]


class _Part(nn.Module):
    """A VAE's encoder or decoder, as a module of one input."""

    def __init__(self, vae: VAE, outputs: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.vae, self.outputs = vae, outputs

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        return self.outputs(batch)


def _exported(part: _Part, batch: Tensor, name: str, outputs: Sequence[str], path: Path) -> tuple[bytes, Exported]:
    """Return the content of the ONNX file of a part, and its description."""
    differences = []
    try:
        with _quiet():
            program = torch.onnx.export(
                part,
                (batch[:_TRACED],),
                verbose=False,
                input_names=[name],
                output_names=outputs,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            )
            assert program is not None
            program.model.producer_name = "pvae"  # by which `core.files` recognises the file
            for given in (batch, batch[:1]):
                for ours, theirs in zip(part(given), program(given)):
                    differences.append((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))
    except Exception as error:  # torch and onnxruntime raise errors of many types
        reason = brief(error.__cause__ or error).split(" : ")[0]
        raise InputError(f"torch {torch.__version__} cannot export {path.stem} as ONNX ({reason})") from None
    difference = torch.stack(differences).max().item()
    if not difference <= _MOST_DIFFERENCE:  # also if it is NaN
        raise InputError(f"the outputs of {path.name} differ from torch's by {difference:.1e}: nothing is written")
    given_as, *returned = (f"(N, {', '.join(map(str, one.shape[1:]))})" for one in (batch, *part(batch)))
    shapes = ", ".join(f"{output} {shape}" for output, shape in zip(outputs, returned))
    described = Exported(path=path, inputs=f"{name} {given_as}", outputs=shapes, difference=difference)
    return program.model_proto.SerializeToString(), described


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what torch's exporter warns of and logs, and let distributions accept any parameters.

    ONNX has no operator for the checks of their values.
    """
    before, validates = logging.root.manager.disable, validates_arguments()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        Distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            logging.disable(before)
            Distribution.set_default_validate_args(validates)

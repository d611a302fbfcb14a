"""Pyro ELBOs. The modules are imported here, so that `PerDatumELBO.members` has all of them."""

from pvae.elbos import trace, handwritten, importance, gradients, discrete, enumerated, total_correlation  # noqa: F401, I001

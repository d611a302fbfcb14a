"""Pyro ELBOs. The modules are imported here, so that `PerDatumELBO.members` has all of them."""

from pvae.elbos import trace, bounds, discrete  # noqa: F401, I001

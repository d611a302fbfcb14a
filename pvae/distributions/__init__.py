"""Densities that torch and Pyro lack, in the style of torch.distributions: no networks, no configuration."""

from pvae.distributions import kl as kl  # registers closed forms

"""Densities that torch and Pyro lack, in the style of torch.distributions: no networks, no configuration."""

"""Priors, posteriors, likelihoods, networks and hierarchies: from a configuration to a VAE."""

"""log p(x) of a VAE, the marginal log-likelihood, by several methods; how far an ELBO is from it, and why."""

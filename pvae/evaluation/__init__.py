"""What a trained VAE is worth: log-likelihood, rate decomposition, estimators side by side, the latent space."""

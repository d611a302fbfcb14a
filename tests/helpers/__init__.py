"""What several tests do: a step at a seed, gradients compared, processes started, killed and forked."""

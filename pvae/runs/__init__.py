"""A run folder: configuration, figures, checkpoint, TensorBoard events; written whole, read without executing."""

"""A training step recorded once and replayed: as a graph, or compiled by inductor."""

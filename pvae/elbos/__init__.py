"""The ELBOs that SVI takes: trace, analytic, importance-weighted, score-function, handwritten, and their registry."""

"""The Pyro ELBOs: trace, analytic, importance-weighted and score-function, and the registry of their names."""

"""The bounds written by hand, and a model whose log p(x) is exact: the code that the ELBOs are tested against."""

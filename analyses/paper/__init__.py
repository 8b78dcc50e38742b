"""The quantities of arXiv 2509.08454 as its published code computes them, fault by fault."""

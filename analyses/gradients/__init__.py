"""Gradients of single samples: norms, agreement, noise."""

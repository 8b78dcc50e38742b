"""Resampling, scores of predictions, divergences, histograms: shared by the analyses."""

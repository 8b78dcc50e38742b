"""What follows from the adapter's own matrices: alignment of A and B, their spectra, intruders."""

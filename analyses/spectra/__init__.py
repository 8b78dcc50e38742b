"""How many directions the rows of an array use: scatter matrices and their spectra."""

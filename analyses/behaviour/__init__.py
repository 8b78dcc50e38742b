"""What the model puts out and how its layers get there: scores, lens, contributions, erasure."""

"""How alike two arrays are: CKA, pooled and by frames."""

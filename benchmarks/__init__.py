"""What produces every figure in README and docs; `results/` holds its records."""

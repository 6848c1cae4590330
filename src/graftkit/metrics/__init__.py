"""How good is it? Pure functions of what a model said and what was true: NumPy and SciPy, no torch, no files."""

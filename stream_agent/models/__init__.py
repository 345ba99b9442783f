"""The model gate: what may be put to use, by which evidence, and the way back."""

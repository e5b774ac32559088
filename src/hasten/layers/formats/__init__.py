"""How the weight matrix of a ``Linear`` is stored, loaded and multiplied. One format per file."""

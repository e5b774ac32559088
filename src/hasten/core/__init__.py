"""Values that every room uses, and the errors. It imports no torch and knows no model."""

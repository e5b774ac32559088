"""Numeric operations: one interface, a torch reference, and faster backends that must match it."""

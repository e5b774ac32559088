"""Importances of heads, neurons and channels.

Each file is one method, and its name is the method's name.
"""

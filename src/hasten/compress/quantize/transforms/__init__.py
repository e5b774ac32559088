"""Methods that rescale inputs before rounding.

Each file is one method, and its name is the method's name.
"""

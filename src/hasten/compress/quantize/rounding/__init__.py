"""Methods that round a matrix.

Each file is one method, and its name is the method's name.
"""

"""The command line: it parses options, calls the layers below and prints their results."""

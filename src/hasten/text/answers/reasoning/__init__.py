"""One file per syntax of thoughts, named after vLLM's parser.

A file holds ``SYNTAX``, a ``hasten.text.answers.syntax.ReasoningSyntax``.
"""

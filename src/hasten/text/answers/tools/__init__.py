"""One file per syntax of tool calls, named after vLLM's parser.

A file holds ``SYNTAX``, a ``hasten.text.answers.syntax.ToolSyntax``. ``hasten.text.answers.choose_parsers`` has a rule for each.
"""

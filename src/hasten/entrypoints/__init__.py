"""What users and servers call: ``LLM``, ``AsyncLLM``, scoring, evaluation, and the wiring from options to an engine."""

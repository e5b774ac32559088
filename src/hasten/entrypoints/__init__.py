"""``LLM``, ``AsyncLLM``, scoring, evaluation, and the wiring from options to an engine."""

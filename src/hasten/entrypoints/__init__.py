"""``LLM``, ``AsyncLLM``, scoring, evaluation, workloads, and the wiring from options to an engine."""

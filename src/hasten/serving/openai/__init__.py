"""OpenAI's surface: models, completions and chat completions, with vLLM's extra fields."""

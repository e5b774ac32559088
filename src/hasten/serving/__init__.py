"""The HTTP server: OpenAI, Anthropic and TGI surfaces over any number of models."""

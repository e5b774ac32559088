"""Anthropic's surface: messages, count_tokens and prompt caching."""

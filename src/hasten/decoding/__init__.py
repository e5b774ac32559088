"""How a request's next tokens are decided: searches over several lines of tokens. It knows no model and no KV cache."""

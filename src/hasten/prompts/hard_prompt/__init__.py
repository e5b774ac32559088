"""Hard prompts: a few tokens that stand before a prompt's text, found by gradients."""

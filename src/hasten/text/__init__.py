"""Text to tokens and back: tokenizer, chat template, incremental detokenizers, stop strings."""

"""Text to tokens and back: the tokenizer with its chat template, incremental detokenizers, stop strings."""

"""Who guesses the tokens to come: one drafter a file, named as the file is."""

from __future__ import annotations

DRAFTERS = ("draft_model", "prompt_lookup", "suffix")

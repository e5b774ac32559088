"""Who guesses the tokens to come: one drafter a file, named as the file is."""

from __future__ import annotations

TEXTUAL = ("prompt_lookup", "suffix")  # they need nothing but the text
DRAFTERS = (*TEXTUAL, "draft_model", "medusa", "eagle", "self_speculation")

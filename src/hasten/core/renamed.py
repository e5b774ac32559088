"""Former spellings of options and exit rules.

No alias exists: an old spelling is refused and its new one named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hasten.core.errors import nearest

RENAMED_ENGINE_OPTIONS = {
    "quantize": "quantization",
    "kv_dtype": "kv_cache_dtype",
    "speculation": "speculative_method",
    "num_draft_tokens": "num_speculative_tokens",
    "draft_layers": "self_draft_layers",
    "draft_quantize": "draft_quantization",
    "ordering": "scheduling_policy",
    "batch_wait": "max_batch_delay",
}
RENAMED_TRAINING_OPTIONS = {
    "guesses": "ttt_steps",
    "state_layers": "aux_layers",
    "hard": "hard_label_weight",
    "start": "init_from",
    "generate": "self_distill",
    "window": "seq_len",
    "held_out": "validation_fraction",
    "vocabulary": "lm_head",
}
RENAMED_EVAL_OPTIONS = {"reference": "against"}
RENAMED_EXIT_RULES = {"layer": "fixed", "tokens": "token_table", "texts": "prompt_hash"}

# The former flags of the command line. Commands that still have a flag of this spelling accept it.
RENAMED_FLAGS = {
    f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}"
    for old, new in {**RENAMED_ENGINE_OPTIONS, **RENAMED_TRAINING_OPTIONS, **RENAMED_EVAL_OPTIONS}.items()
}


def remedy_for_unknown(name: object, choices: Iterable[str], renamed: Mapping[str, str]) -> str:
    """Return the remedy for an unknown name: its new spelling if it is a choice, else the nearest choice."""
    known = list(choices)
    new_name = renamed.get(str(name))
    return f"It was renamed to {new_name}" if new_name in known else nearest(name, known)

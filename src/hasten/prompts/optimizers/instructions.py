"""``instructions``: instructions that a model proposes, compared by successive halving.

Sources: APE (Zhou et al., 2022, arXiv 2211.01910) and OPRO (Yang et al., 2023, arXiv 2309.03409).
"""

from __future__ import annotations

from hasten.prompts.instruction_search import InstructionOptions, search_instructions
from hasten.prompts.load_variant import TemplateVariant
from hasten.prompts.optimizer import Candidate, Workbench
from hasten.prompts.proposer import open_proposer

OPTIONS = InstructionOptions


def optimize(bench: Workbench, initial: TemplateVariant, options: InstructionOptions) -> Candidate:
    """Return the initial prompt with the best instruction, or as it is if none is better.

    The validation items decide. Raises ``HastenError``.
    """
    proposer = open_proposer(
        bench.llm,
        options.proposer,
        options.proposer_model,
        chat=bench.options.chat,
        max_tokens=options.max_instruction_tokens,
    )
    return search_instructions(bench, initial, options, proposer)

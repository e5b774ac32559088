"""The fields of ``TemplateOptions`` as command options, and the prompt that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hasten.cli.options import OptionGroup, OptionValues
from hasten.cli.streams import read_prompt_file
from hasten.core.errors import InvalidOption, show
from hasten.prompts.examples import Example, ExamplePool, read_examples
from hasten.prompts.library import TemplateLibrary
from hasten.prompts.select_examples import Method, select_examples
from hasten.prompts.template import PromptTemplate
from hasten.prompts.template_file import SUFFIXES
from hasten.prompts.template_options import NUM_EXAMPLES, TemplateOptions

if TYPE_CHECKING:
    from hasten.entrypoints.llm import LLM

HELP = {
    "template": "Render the prompt from this template: a name (see hasten prompt ls), or a file of one template.",
    "templates": "A folder or file of templates, which are found before the built-in ones.",
    "var": "A variable of the template, as NAME=VALUE.",
    "var_file": "A variable of the template from a file of text, as NAME=FILE.",
    "examples": "A JSONL file of examples for the template.",
    "num_examples": "Maximum examples in the prompt; 4, or with --max-prompt-tokens as many as fit, if left out.",
    "example_method": "How examples are selected: random, balanced (as many of each output) or similar (to the input, by "
    "embeddings of the model).",
    "example_seed": "Random seed of that selection.",
    "max_prompt_tokens": "Maximum tokens of the prompt; examples beyond it are left out.",
}
TEMPLATE = OptionGroup("template_options", "Prompt template", TemplateOptions, HELP)


@dataclass(frozen=True, slots=True)
class TemplatePrompt:
    """A template with its variables; its examples are selected when it is rendered."""

    template: PromptTemplate
    variables: dict[str, Any]
    pool: ExamplePool | None
    options: TemplateOptions

    def render(self, llm: LLM | None) -> str:
        """Return the prompt.

        Without a model, similar examples and a token budget raise ``InvalidOption``.
        """
        if self.pool is None:
            return self.template.render(self.variables)
        pool, options = self.pool, self.options
        if llm is None and (options.example_method == "similar" or options.max_prompt_tokens is not None):
            raise InvalidOption("similar examples and a token budget need a model", remedy="Use hasten generate")

        def count_tokens(examples: Sequence[Example]) -> int:
            assert llm is not None
            if llm.tokenizer is None:
                raise InvalidOption("this checkpoint has no tokenizer to count tokens", remedy="Leave out --max-prompt-tokens")
            return len(llm.tokenizer.encode(self._rendered(examples)))

        (examples,) = select_examples(
            pool,
            [{name: self.variables[name] for name in pool.input_columns}],
            self._num_examples(pool),
            cast("Method", options.example_method),
            seed=options.example_seed,
            embed=None if llm is None else llm.embed,
            count_tokens=count_tokens,
            max_tokens=options.max_prompt_tokens,
        )
        return self._rendered(examples)

    def _num_examples(self, pool: ExamplePool) -> int:
        """Return how many examples to show at most: without a number or a budget, a few."""
        default = NUM_EXAMPLES if self.options.max_prompt_tokens is None else len(pool.examples)
        return self.options.num_examples or min(default, len(pool.examples))

    def _rendered(self, examples: Sequence[Example]) -> str:
        return self.template.render({**self.variables, "examples": examples})


def read_template(values: OptionValues, *, num_other_prompts: int = 0) -> TemplatePrompt | None:
    """Return the prompt that the options describe; None without a template. Raises ``HastenError``."""
    options = TemplateOptions(**values)
    if options.template is None:
        return None
    if num_other_prompts:
        raise InvalidOption(
            "--template renders the prompt, so no other one can be given",
            got=f"{num_other_prompts} more",
            remedy="Leave out PROMPT, --prompt-file and --prompt-ids",
        )
    template = _find_template(options.template, TemplateLibrary(options.templates))
    variables: dict[str, Any] = _read_variables(options)
    checked, pool = variables, None
    if options.examples is not None:
        if "examples" not in template.variables:
            raise InvalidOption("this template shows no examples", got=template.name, remedy="Leave out --examples")
        if "examples" in variables:
            raise InvalidOption("a variable is given twice", got="--examples and the variable examples", remedy="Leave one out")
        pool = read_examples(Path(options.examples), [name for name in template.variables if name != "examples"])
        checked = {**variables, "examples": pool.examples[: options.num_examples or NUM_EXAMPLES]}
    template.render(checked)  # faults show before a model is loaded
    return TemplatePrompt(template, variables, pool, options)


def _find_template(name: str, library: TemplateLibrary) -> PromptTemplate:
    """Return a template by its name, or that of a file. Raises ``InvalidOption``."""
    from hasten.prompts.load_variant import load_variant  # here, because it imports torch

    is_file = name not in library.entries and Path(name).suffix.lower() in SUFFIXES
    return load_variant(name).template if is_file else library.find(name)


def _read_variables(options: TemplateOptions) -> dict[str, str]:
    variables: dict[str, str] = {}
    for flag, texts in (("--var", options.var), ("--var-file", options.var_file)):
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise InvalidOption(f"{flag} has the wrong form", got=show(text), allowed="NAME=VALUE")
            if name in variables:
                raise InvalidOption("a variable is given twice", got=show(name), remedy="Leave one out")
            variables[name] = value if flag == "--var" else read_prompt_file(value)
    return variables

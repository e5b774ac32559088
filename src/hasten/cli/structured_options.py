"""The form of an output as command options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hasten.cli.options import OptionGroup, OptionValues
from hasten.core.errors import InvalidOption, show
from hasten.core.structured_outputs import MAX_SOURCE, StructuredOutputs

HELP = {
    "json_schema": "The output is JSON that this JSON schema allows; a schema, or a file of one.",
    "json_object": "The output is a JSON object.",
    "regex": "The output matches this regular expression as a whole.",
    "choice": "The output is one of these texts.",
    "grammar": "The output is a text of the grammar in this file, in Lark or GBNF.",
    "compact_json": "With --json-schema or --json-object: no white space between the parts of the JSON.",
}
_FORMS = ("json_schema", "json_object", "regex", "choice", "grammar")


@dataclass(frozen=True, slots=True)
class StructuredOptions:
    json_schema: str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] = ()
    grammar: str | None = None
    compact_json: bool = False


STRUCTURED = OptionGroup("structured_options", "Form of the output", StructuredOptions, HELP)


def read_structured(values: OptionValues) -> OptionValues:
    """Return the setting ``structured_outputs`` that the options describe, or none.

    Raises ``HastenError``.
    """
    given = structured_flags(values)
    options = StructuredOptions(**values)
    if len(given) > 1:
        raise InvalidOption("an output has one form", got=", ".join(given), remedy="Leave out all but one")
    if options.compact_json and options.json_schema is None and not options.json_object:
        raise InvalidOption("--compact-json needs JSON", remedy="Add --json-schema or --json-object")
    if not given:
        return {}
    form = StructuredOutputs(
        json=None if options.json_schema is None else _schema(options.json_schema),
        json_object=options.json_object,
        regex=options.regex,
        choice=options.choice,
        grammar=None if options.grammar is None else _read("--grammar", options.grammar),
        disable_any_whitespace=options.compact_json,
    )
    return {"structured_outputs": form}


def structured_flags(values: OptionValues) -> dict[str, object]:
    """Return the options of a form that were given, as they are written."""
    return {"--" + name.replace("_", "-"): True for name in _FORMS if values.get(name) not in (None, False, ())}


def _schema(text: str) -> str:
    is_schema = text.lstrip().startswith("{") or text.strip() == "true"
    return text if is_schema else _read("--json-schema", text)


def _read(flag: str, file: str) -> str:
    """Return the text of a file, up to one character more than is allowed."""
    try:
        with Path(file).open(encoding="utf-8") as stream:
            return stream.read(MAX_SOURCE + 1)
    except (OSError, ValueError) as error:  # no such file, no text in it, or no name of a file
        raise InvalidOption(f"the file of {flag} cannot be read", got=f"{show(file)}: {error}") from None

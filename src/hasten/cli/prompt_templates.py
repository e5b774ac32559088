"""``hasten prompt ls`` and ``hasten prompt show``: list the prompt templates, and show one of them."""

from __future__ import annotations

import json as encoder
from typing import Annotated, Any

import typer

from hasten.cli.engine_options import Debug, Json
from hasten.cli.options import OptionValues, with_options
from hasten.cli.report import print_table
from hasten.cli.template_options import TEMPLATE, read_template
from hasten.prompts.library import LibraryEntry, TemplateLibrary


def ls(
    templates: Annotated[
        list[str] | None,
        typer.Option("--templates", metavar="TEXT", help="A folder or file of templates; they come before the built-in ones."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the prompt templates: the user's and the built-in ones."""
    entries = TemplateLibrary(templates or ()).entries.values()
    if json:
        print(encoder.dumps([_facts(entry) for entry in entries], ensure_ascii=False))
        return
    rows = [
        (entry.template.name, entry.template.language, ", ".join(entry.template.variables) or "-", entry.source)
        for entry in entries
    ]
    print_table(("NAME", "LANGUAGE", "VARIABLES", "SOURCE"), rows)


@with_options(TEMPLATE.without(("template", "max_prompt_tokens")))
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the template.")],
    json: Json = False,
    debug: Debug = False,
    *,
    template_options: OptionValues,
) -> None:
    """Show a prompt template and, with variables, the prompt that it gives."""
    library = TemplateLibrary(template_options.get("templates", ()))
    template = library.find(name)
    facts = _facts(library.entries[name]) | {"text": template.text}
    if template_options.keys() - {"templates"}:
        rendered = read_template({**template_options, "template": name})
        assert rendered is not None
        facts["prompt"] = rendered.render(None)
    if json:
        print(encoder.dumps(facts, ensure_ascii=False))
        return
    print(f"{name} ({template.language}, {facts['source']}): {template.description}".rstrip(": "))
    print("variables:", ", ".join(template.variables) or "none")
    for variable, default in template.defaults.items():
        print(f"default of {variable}: {default!r}")
    parts = {"system": template.system, "text": template.text.rstrip("\n"), "prompt": facts.get("prompt")}
    for title, part in parts.items():
        if part is not None:
            print(f"--- {title}\n{part}")


def _facts(entry: LibraryEntry) -> dict[str, Any]:
    template = entry.template
    return {
        "name": template.name,
        "language": template.language,
        "variables": list(template.variables),
        "defaults": dict(template.defaults),
        "system": template.system,
        "description": template.description,
        "source": entry.source,
    }

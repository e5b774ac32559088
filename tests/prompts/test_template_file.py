"""``template_yaml``: what it writes is what ``read_templates`` reads."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from hasten.prompts.template import PromptTemplate
from hasten.prompts.template_file import read_templates, template_yaml

PIECES = ["a", " ", "\n", "\t", "\r", ": ", "- ", "#", "|", ">", "'", '"', "\\", "null", "1.5", "%", "&", "*", "---"]
PIECES += ["\x07", "\x85", "\u2028", "\ufeff", "\U0001f600"]


def test_a_template_survives_its_file(tmp_path: Path) -> None:
    generator, file = random.Random(0), tmp_path / "prompt.yaml"
    for _ in range(100):
        text, description, system, default = ("".join(generator.choices(PIECES, k=generator.randint(0, 8))) for _ in range(4))
        template = PromptTemplate("my.name-1", f"{{{{ x }}}}{text}", description, "zh", {"x": default}, system or None)
        file.write_bytes(template_yaml(template).encode())
        assert read_templates(file) == [template] and read_templates(file)[0].defaults == {"x": default}


@pytest.mark.parametrize("text", ["one\ntwo", "中\n\n  indented\nlast"])
def test_a_text_of_several_lines_stays_readable(text: str) -> None:
    assert f"text: |-\n  {text.splitlines()[0]}\n" in template_yaml(PromptTemplate("name", text))

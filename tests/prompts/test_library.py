"""Template files and folders: what they may hold, what is refused, and which template a name means."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from hasten.core.errors import MAX_MESSAGE, InvalidOption
from hasten.prompts import template_file
from hasten.prompts.library import TemplateLibrary
from hasten.prompts.template import PromptTemplate
from hasten.prompts.template_file import read_templates

GREET = """
name: greet
description: "Greets: someone."
text: |
  Hello {{ name }},
  {{ wish }}!
defaults: {wish: good morning, number: 5}
language: zh
system: You are polite.
""".replace(", number: 5", "")


def write(folder: Path, name: str, content: str) -> Path:
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return file


def test_a_yaml_file_has_one_template_or_a_list(tmp_path: Path) -> None:
    greet = PromptTemplate(
        "greet", "Hello {{ name }},\n{{ wish }}!\n", "Greets: someone.", "zh", {"wish": "good morning"}, "You are polite."
    )
    assert read_templates(write(tmp_path, "a.yaml", GREET)) == [greet]
    listed = "- {name: one, text: '1'}\n- {name: two, text: 2}\n- name: three\n  text: yes {{ no }}\n"
    assert read_templates(write(tmp_path, "b.YML", listed)) == [
        PromptTemplate("one", "1"),
        PromptTemplate("two", "2"),  # every scalar is a text
        PromptTemplate("three", "yes {{ no }}"),
    ]


def test_a_jinja_file_is_named_as_the_file_and_described_by_its_first_comment(tmp_path: Path) -> None:
    (described,) = read_templates(write(tmp_path, "ask.jinja", "{#- Asks\n  once. -#}\n{{ question }}?"))
    assert (described.name, described.description, described.variables) == ("ask", "Asks once.", ("question",))
    assert described.render({"question": "Why"}) == "Why?"
    (plain,) = read_templates(write(tmp_path, "报告.j2", "{{ a }}{# not at the start #}"))
    assert (plain.name, plain.description) == ("报告", "")


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("name: a\ntext: x\ntxet: y\n", r"the key of a template has no meaning: got 'txet'\. Did you mean 'text'"),
        ("name: a\n", "the key text is missing: got the keys name"),
        ("{}", "the key name is missing: got the keys none"),
        ("text: x\nname: a\nname: b\n", "a key is given twice: got 'name'"),
        ("name: a\ntext: [x]\n", "'text' is not a text: got line 2"),
        ("name: a\ntext: x\nsystem: null\n", "'system' is not a text: got line 3"),
        ("name: a\ntext: x\nsystem:\n", "'system' is not a text: got line 3"),
        ("name: a\ntext: '{{ b }}'\ndefaults: {b: {c: d}}\n", "'b' is not a text"),
        ("name: a\ntext: '{{ b }}'\ndefaults: [b]\n", "'defaults' is not a text"),
        ("name: a\ntext: '{{ b }}'\ndefaults: {c: d}\n", "defaults=.*that the text reads: b"),
        ("name: a\ntext: '{{ b'\n", r"prompt template 'a' cannot be read: got .*\(line 1\)"),
        ("name: a\ntext: x\n? [1]\n: y\n", "'a key' is not a text"),
        ("name: a\ntext: x\n<<: {language: zh}\n", "the key of a template has no meaning: got '<<'"),
        ("- {name: a, text: x}\n- {name: a, text: y}\n", "two templates have the same name: got 'a'"),
        ("- {name: a, text: x}\n- {name: b, txt: y}\n", "template 2: the key of a template has no meaning: got 'txt'"),
        ("- {name: a, text: x}\n- y\n", "template 2: a template is not a mapping"),
        ("5", "a template is not a mapping"),
        ("# nothing", "a template is not a mapping"),
        ("[]", "a wrong number of templates: got 0; allowed: 1 to 256"),
        ("name: [a\n", "this is not YAML: got .*line 2"),
        ("name: a\n--- \nname: b\n", "this is not YAML: got expected a single document"),
        ("[" * 50_000, "this YAML is nested too deeply"),
        ('name: a\ntext: "\\UFFFFFFFF"\n', "this YAML cannot be read"),
        ("name: a\ntext: *x\n", "this is not YAML: got found undefined alias"),
        ("name: a\ntext: !!python/object/apply:os.system [x]\n", "'text' is not a text"),
        ("name: a\ntext: &t [*t]\n", "'text' is not a text"),
        ("&t [*t]", "a template is not a mapping"),
        (
            "- {name: &n a, text: x}\n" + "".join(f"- {{name: b{i}, text: x}}\n" for i in range(256)),
            "wrong number of templates: got 257",
        ),
    ],
)
def test_a_wrong_yaml_file_is_one_sentence(content: str, pattern: str, tmp_path: Path) -> None:
    file = write(tmp_path, "wrong.yaml", content)
    with pytest.raises(InvalidOption, match=pattern) as raised:
        read_templates(file)
    assert str(file) in str(raised.value) and len(str(raised.value)) <= MAX_MESSAGE


def test_a_file_of_nested_aliases_costs_no_memory(tmp_path: Path) -> None:
    """Each line holds the one before ten times."""
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 60))
    with pytest.raises(InvalidOption, match="the key of a template has no meaning: got 'a0'"):
        read_templates(write(tmp_path, "bomb.yaml", bomb))
    with pytest.raises(InvalidOption, match="'text' is not a text"):
        read_templates(write(tmp_path, "bomb.yaml", "name: x\ntext: &a [&b [*a, *a], *b]\n"))


def test_files_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "bytes.jinja").write_bytes(b"\xff\xfe")
    write(tmp_path, "empty.jinja", "")
    write(tmp_path, "large.jinja", "x" * 101)
    write(tmp_path, "notes.txt", "x")
    write(tmp_path, "a b.jinja", "x")
    monkeypatch.setattr(template_file, "MAX_BYTES", 100)
    for name, pattern in (
        ("pipe.yaml", "cannot be read: got no regular file"),
        ("bytes.jinja", "is not text"),
        ("empty.jinja", "is empty"),
        ("large.jinja", "got 101 bytes; allowed: a file of up to 100 bytes"),
        ("notes.txt", "not a file of prompt templates"),
        ("a b.jinja", "name='a b'"),
        ("missing.yaml", "missing.yaml cannot be read"),
        ("x\0y.yaml", "cannot be read"),
    ):
        with pytest.raises(InvalidOption, match=pattern):
            read_templates(tmp_path / name)


# ---------------------------------------------------------------- the library


def test_the_users_folders_come_first_and_the_nearest_name_is_offered(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    write(first, "qa.jinja", "first {{ question }}")
    write(first, "notes.txt", "no template")
    write(second, "more.yaml", "- {name: qa, text: second}\n- {name: other, text: other}\n")
    library = TemplateLibrary([first, str(second)])
    assert library.find("qa").text == "first {{ question }}"
    assert library.find("other").text == "other"
    assert library.find("cot").language == "en"
    assert TemplateLibrary([second, first]).find("qa").text == "second"
    assert TemplateLibrary([first / "qa.jinja"]).find("qa").text == "first {{ question }}"
    sources = {name: entry.source for name, entry in library.entries.items()}
    assert (sources["qa"], sources["other"], sources["cot"]) == (str(first / "qa.jinja"), str(second / "more.yaml"), "built in")
    assert list(library.entries) == sorted(library.entries)
    for name, pattern in (("othr", "got 'othr'. Did you mean 'other'"), ("zzzz", "Choose one of cot, cot_zh, few_shot")):
        with pytest.raises(InvalidOption, match=pattern):
            library.find(name)


def test_a_name_used_twice_in_a_folder_is_refused_with_both_files(tmp_path: Path) -> None:
    write(tmp_path, "a.jinja", "x")
    write(tmp_path, "b.yaml", "{name: a, text: y}")
    with pytest.raises(InvalidOption, match=rf"same name: got a in {tmp_path}/a.jinja and in {tmp_path}/b.yaml"):
        TemplateLibrary([tmp_path])


def test_a_folder_without_templates_or_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="has no templates: got 0 files"):
        TemplateLibrary([tmp_path])
    with pytest.raises(InvalidOption, match="not a file of prompt templates"):
        TemplateLibrary([tmp_path / "missing"])


def mutated(data: bytes, generator: random.Random) -> bytes:
    """The file with some bytes changed, cut out, repeated or put in from YAML's and Jinja's own syntax."""
    changed = bytearray(data)
    for _ in range(generator.randrange(1, 6)):
        start = generator.randrange(len(changed) + 1)
        stop = min(len(changed), start + generator.randrange(9))
        pieces = (b"", bytes([generator.randrange(256)]), changed[start:stop] * 2, generator.choice(SYNTAX))
        changed[start:stop] = generator.choice(pieces)
    return bytes(changed)


SYNTAX = [
    b"{{",
    b"}}",
    b"{%",
    b"%}",
    b"{#",
    b"&a",
    b"*a",
    b"!!int ",
    b"- ",
    b": ",
    b"? ",
    b"[",
    b"|",
    b"\n",
    b"\t",
    b"\xff",
    b"null",
]


@pytest.mark.parametrize("suffix", ["yaml", "jinja"])
def test_a_mutated_file_is_read_or_refused(suffix: str, tmp_path: Path) -> None:
    whole = GREET.encode() if suffix == "yaml" else b"{# Greets. #}{% for a in b %}{{ a.name | upper }}{% endfor %}"
    generator = random.Random(suffix)
    messages, num_read = [], 0
    for _ in range(150):
        file = tmp_path / f"mutated.{suffix}"
        file.write_bytes(mutated(whole, generator))
        try:
            num_read += all(isinstance(template, PromptTemplate) for template in read_templates(file))
        except InvalidOption as error:
            messages.append(str(error))
    assert all(message.isprintable() and len(message) <= MAX_MESSAGE for message in messages)
    assert num_read + len(messages) == 150 and min(num_read, len(messages)) >= 5

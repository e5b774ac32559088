"""Write the three small tasks that ship, from word lists and a seed: ``python benchmarks/prompt_tasks.py``.

    next_identifier    a snippet of Python that stops before a name; the name
    docstring_style    a signature; the first line of its docstring, in one style
    label_words        a line of Python; one word for what it is

Every text is put together from the words below. The same seed writes the same bytes.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

SEED = 7
NUM_ITEMS = 600  # of each task
FOLDER = Path(__file__).parents[1] / "src" / "hasten" / "prompts" / "tasks"

Item = tuple[str, str]  # input, output


def words(text: str) -> list[str]:
    return text.split()


NOUNS = words(
    "count index value total result node name path line word key item size width height offset limit buffer message reader writer "
    "parser token stream field record column label color price score weight delay counter table window handler callback queue "
    "event timer worker server client session"
)
PLURALS = words("items names lines words values nodes keys paths tokens records fields rows events results scores")
VERBS = words("load save find make send open close check update remove start stop parse merge split clean count print show test")
ADJECTIVES = words("empty valid open ready closed known hidden sorted")
MODULES = words("json math random socket string struct time glob shutil tempfile textwrap logging queue heapq bisect copy")


def number(draw: random.Random) -> int:
    return draw.randrange(2, 100)


def next_identifier(draw: random.Random) -> Item:
    """Return a snippet that stops where a name follows, and the name: always one that the snippet has already."""
    first, second, third = draw.sample(NOUNS, 3)
    plural, verb = draw.choice(PLURALS), draw.choice(VERBS)
    return draw.choice(
        [
            (f"{first} = {number(draw)}\n{second} = {number(draw)}\n{third} = {first} +", second),
            (f"def {verb}({first}, {second}):\n    {third} = {first} + {second}\n    return", third),
            (f"{first} = {verb}({number(draw)})\n{second} = {number(draw)}\nif not", first),
            (f"def {verb}_{first}({plural}):\n    for {second} in", plural),
            (f"for {first} in {plural}:\n    if {first} > {number(draw)}:\n        {second} =", first),
            (f"{plural} = []\n{first} = {number(draw)}\nfor {second} in", plural),
            (f"with open({first}) as {second}:\n    {third} =", second),
        ]
    )


def docstring_style(draw: random.Random) -> Item:
    """Return a signature and a sentence of the words in its name, without the parameters. Its verb depends on the first word."""
    first, second, third = draw.sample(NOUNS, 3)
    verb, adjective = draw.choice(VERBS), draw.choice(ADJECTIVES)
    return draw.choice(
        [
            (f"def get_{first}({third}):\n", f"Return the {first}."),
            (f"def get_{first}_{second}({third}):\n", f"Return the {first} {second}."),
            (f"def set_{first}({third}, value):\n", f"Set the {first}."),
            (f"def is_{adjective}({first}):\n", f"Return whether the {first} is {adjective}."),
            (f"def {verb}_{first}({third}):\n", f"{verb.capitalize()} the {first}."),
            (f"def {verb}_{first}({second}, {third}):\n", f"{verb.capitalize()} the {first}."),
        ]
    )


def label_words(draw: random.Random) -> Item:
    """Return a line and its label. Calls stand in lines of every kind, so that one token does not decide."""
    first, second, third = draw.sample(NOUNS, 3)
    plural, verb, module = draw.choice(PLURALS), draw.choice(VERBS), draw.choice(MODULES)
    call = draw.choice([f"{verb}({first})", f"{first}.{verb}({second})", f"{module}.{verb}({first}, {number(draw)})"])
    value = draw.choice([call, f"{first} + {number(draw)}", f"{first}[{second}]", f"not {first}"])
    test = draw.choice([call, f"{first} > {number(draw)}", f"not {first}", f"{first} in {plural}"])
    lines = {
        "loop": [f"for {third} in {plural}:", f"for {third} in {call}:", f"while {test}:", f"for {first}, {third} in {plural}:"],
        "branch": [f"if {test}:", f"elif {test}:"],
        "assignment": [
            f"{third} = {value}",
            f"self.{third} = {value}",
            f"{third} += {number(draw)}",
            f"{third}[{first}] = {value}",
        ],
        "call": [call, f"self.{call}", f"print({value})"],
        "import": [
            f"import {module}",
            f"import {module} as {third}",
            f"from {module} import {third}",
            f"from .{third} import {verb}",
        ],
        "return": [f"return {value}", f"return {first}, {third}"],
    }
    label = draw.choice(sorted(lines))
    return draw.choice(lines[label]) + "\n", label


TASKS: dict[str, Callable[[random.Random], Item]] = {
    "next_identifier": next_identifier,
    "docstring_style": docstring_style,
    "label_words": label_words,
}


def task_text(name: str, num_items: int) -> str:
    """Return the lines of a task, each input once."""
    draw = random.Random(f"{SEED} {name}")
    items: dict[str, str] = {}
    while len(items) < num_items:
        given, output = TASKS[name](draw)
        items.setdefault(given, output)
    return "".join(json.dumps({"input": given, "output": output}) + "\n" for given, output in items.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=NUM_ITEMS, help="of each task")
    options = parser.parse_args()
    for name in TASKS:
        (FOLDER / f"{name}.jsonl").write_text(task_text(name, options.items), encoding="utf-8")


if __name__ == "__main__":
    main()

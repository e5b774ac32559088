"""Templates of strangers: escapes are refused, limits hold, nothing hangs, and the next call works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hasten.core.errors import CheckpointError, HastenError, InvalidRequest
from hasten.text import template_process
from hasten.text.template_process import SECONDS, TemplateProcess

GOOD = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
VARIABLES = {"messages": [{"role": "user", "content": "Hi"}], "secret": {"a": 1}}

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ ('{0.__class__.__mro__}').format(1) }}",
    "{{ ('{0.__class__}'|attr('format'))(1) }}",
    "{{ '{0.__class__}'.format_map({'0': 1}).x.y }}",
    "{{ [''.format]|map('format', 1)|list }}{{ (''|attr('format'))('{0.__class__.__init__.__globals__}').a.b }}",
    "{{ self.__init__.__globals__['os'] }}",
    "{{ self._TemplateReference__context.environment.overlay() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__['__builtins__'] }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ namespace.__init__.__globals__.sys.modules }}",
    "{{ raise_exception.__globals__.socket.socket() }}",
    "{{ strftime_now.__globals__.json.loads }}",
    "{{ dict.__call__.__globals__.send }}",
    "{{ dict.mro() }}",
    "{{ namespace(__class__=1) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages.clear() }}",
    "{{ secret.pop('a') }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__.x }}",
    "{{ (messages|map(attribute='__class__')|list)[0].x }}",
    "{{ messages|sort(attribute='role.__class__.__mro__')|first|attr('x')|attr('y') }}{{ messages.sort() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends '/etc/passwd' %}",
    "{{ ''.join.__self__.__class__ }}",
    "{{ (1).__class__.__bases__ }}",
    "{{ caller.gi_frame.f_globals.x }}",
    "{% set g = (i for i in []) %}",
]

BOMBS = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3,
    "nested ranges that write": "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 5000000000 }}",
    "a long list": "{{ ([1] * 10000000000) | length }}",
    "indented JSON": "{{ messages | tojson(indent=10**8) }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a shift of digits": "{{ (7 ** 10000000) % 10 }}",
    "a wide format": "{{ '%010000000000d' % 1 }}",
    "a wide format of new style": "{{ '{:>10000000000}'.format(1) }}",
    "a wide centre": "{{ 'a'.center(10**10) }}",
    "doubling": "{% set ns = namespace(t='aaaaaaaa') %}{% for i in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t }}",
    "replacing": "{{ ('a' * 100000) | replace('a', 'a' * 100000) }}",
    "a join": "{{ range(99999) | join('a' * 1000000) }}",
    "filler text": "{{ lipsum(n=100000000) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "double recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "much text": "{% for a in range(99999) %}{{ 'a' * 100 }}{% endfor %}",
    "a batch": "{{ range(99999) | batch(10**10, 'x') | list | length }}",
    "a slice": "{{ range(9) | slice(10**9) | list | length }}",
    "backtracking": "{{ ('a ' * 20000) | wordwrap(1) | urlize | wordcount }}{{ 9 ** (9 ** 9) }}",
    "deep source": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long source": "{{ 1" + " + 1" * 100_000 + " }}",
}


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    process = TemplateProcess()
    yield process
    process.close()


def render(process: TemplateProcess, template: str) -> str:
    return process.render(template, VARIABLES, len(template) + 100)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_sandbox_escape_is_refused(process: TemplateProcess, template: str) -> None:
    try:
        text = render(process, template)
    except HastenError:
        text = ""
    assert text == ""  # an attribute that the sandbox hides is undefined, and prints nothing
    assert render(process, GOOD) == "user: Hi\n"


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_without_end_is_ended(process: TemplateProcess, bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if bomb != "nested ranges":
        monkeypatch.setattr(template_process, "SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(HastenError) as raised:
        print(len(render(process, BOMBS[bomb])))
    assert time.monotonic() - start < SECONDS + 3
    assert not isinstance(raised.value, CheckpointError)
    assert len(str(raised.value)) < 1000
    assert render(process, GOOD) == "user: Hi\n"


def test_the_error_names_the_limit(process: TemplateProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "SECONDS", 0.3)
    for bomb, how in (("nested ranges", "more than 0.3 s"), ("a long text", "too much memory"), ("much text", "longer than")):
        with pytest.raises(InvalidRequest, match=rf"exceeds its limits.*{how}.*allowed: .*256 MiB, 4 × the input"):
            render(process, BOMBS[bomb])


def test_the_output_may_be_four_times_the_input_and_64_ki_characters(process: TemplateProcess) -> None:
    template = "{% for i in range(n) %}é{% endfor %}"
    limit = 4 * 1000 + (64 << 10)
    assert len(process.render(template, {"n": limit}, 1000)) == limit
    with pytest.raises(InvalidRequest, match=f"longer than {limit} characters"):
        process.render(template, {"n": limit + 1}, 1000)


def test_a_megabyte_of_messages_is_within_the_limits(process: TemplateProcess) -> None:
    messages = [{"role": "user", "content": "wörds " * 10_000}] * 50
    expected = "".join(f"user: {m['content']}\n" for m in messages)
    assert process.render(GOOD, {"messages": messages}, len(json.dumps(messages))) == expected


def test_threads_share_the_process(process: TemplateProcess) -> None:
    def work(i: int) -> Any:
        if i % 25 == 7:
            with pytest.raises(InvalidRequest):
                process.render("{{ 'a' * 5000000000 }}", {}, 0)
        return process.render("{{ i }}:{{ 'x' * i }}", {"i": i}, 1000)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(200))) == [f"{i}:{'x' * i}" for i in range(200)]


def test_an_interrupt_leaves_no_answer_for_the_next_call(process: TemplateProcess) -> None:
    render(process, GOOD)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            render(process, "{% for a in range(9999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}late")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert render(process, GOOD) == "user: Hi\n"


def test_a_process_that_was_killed_is_replaced(process: TemplateProcess) -> None:
    render(process, GOOD)
    assert process.pid is not None
    pid = process.pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert render(process, GOOD) == "user: Hi\n"


def test_no_process_is_left(process: TemplateProcess) -> None:
    """Neither after ``close``, nor after the owner is gone, nor as a zombie."""
    own = TemplateProcess()
    pids = []
    for _ in range(3):
        render(own, GOOD)
        pids.append(_pid(own))
        own.close()
    render(own, GOOD)
    pids.append(_pid(own))
    del own
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _pid(process: TemplateProcess) -> int:
    assert process.pid is not None
    return process.pid


PROGRAM = """
import os, sys
{before}
from hasten.text.template_process import TemplateProcess
process = TemplateProcess()
text = process.render({template!r}, {variables!r}, 100)
os.write({out}, (str(process.pid) + " " + text).encode())
{after}
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("os.close(0)", ""),
        ("os.close(0); os.close(1); os.close(2)", ""),
        ("sys.stdin = sys.stdout = sys.stderr = None", ""),
        ("", "sys.exit(3)"),
        ("", "os.kill(os.getpid(), 9)"),
        ("", "pid = os.fork()\nif pid == 0: text = process.render('{{ 1 }}', {}, 9); sys.exit(0)\nos.waitpid(pid, 0)"),
    ],
)
def test_it_works_without_standard_streams_and_ends_with_its_owner(tmp_path: Path, before: str, after: str) -> None:
    read, write = os.pipe()
    program = PROGRAM.format(before=before, after=after, template=GOOD, variables=VARIABLES, out=write)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, pass_fds=[write], capture_output=True, timeout=60)
    os.close(write)
    with open(read) as pipe:
        pid, text = pipe.read().split(" ", 1)
    assert text == "user: Hi\n"
    assert ran.returncode == {"sys.exit(3)": 3, "os.kill(os.getpid(), 9)": -9}.get(after, 0), ran.stderr
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        os.sched_yield()
    assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"

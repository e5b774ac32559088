"""The program that runs a user's scoring function, so that one that hangs can be killed.

It imports the standard library and the user's file only. A message in either direction is one line of JSON::

    -> {"arguments": ["...", ...]}
    <- {"ready": true}, then for each message {"score": 0.5} or {"fault": "ValueError: ..."}

What the function prints is dropped.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import math
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, TextIO

_MAX_MESSAGE = 500  # characters of an error


def main(file: str, name: str, seconds: str, max_bytes: str) -> None:
    """Answer messages from standard input until it ends. ``max_bytes`` 0: no limit."""
    if int(max_bytes):
        resource.setrlimit(resource.RLIMIT_DATA, (int(max_bytes), int(max_bytes)))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    null = open(os.devnull, "r+", encoding="utf-8")  # noqa: SIM115 (it stays open)
    os.dup2(null.fileno(), sys.stdout.fileno())
    # If the caller has died, a function that hangs ends itself: this timer needs no interpreter.
    faulthandler.dump_traceback_later(float(seconds), exit=True, file=null)
    function = _load(file, name, answers)
    for line in sys.stdin:
        faulthandler.dump_traceback_later(float(seconds), exit=True, file=null)
        _send(answers, _answer(function, json.loads(line)))
        faulthandler.cancel_dump_traceback_later()


def _load(file: str, name: str, answers: TextIO) -> Callable[..., Any]:
    """Return the user's function, or send the fault and end the program."""
    try:
        sys.path.insert(0, os.path.dirname(os.path.abspath(file)))  # as if the file were run
        spec = importlib.util.spec_from_file_location("hasten_user_metric", file)
        if spec is None or spec.loader is None:
            raise ImportError("it is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        function: Any = getattr(module, name, None)
        if not callable(function):
            raise ImportError(f"it has no function {name}")
    except BaseException as error:  # the file may even exit
        _send(answers, {"fault": _describe(error)})
        os._exit(1)
    faulthandler.cancel_dump_traceback_later()
    _send(answers, {"ready": True})
    return lambda *texts: function(*texts)


def _answer(function: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    try:
        value = function(*request["arguments"])
        score = float(value)
    except BaseException as error:
        return {"fault": _describe(error)}
    if not math.isfinite(score):
        return {"fault": f"it returned {score}"}
    return {"score": score}


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_MESSAGE]


def _send(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])

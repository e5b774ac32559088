"""``hand_over``: running a model with vLLM in place of hasten's own engine."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from hasten.core.engine_options import EngineOptions
from hasten.serving.server_options import ServerOptions

NOT_INSTALLED = 127  # as a shell says of a command that it does not find


def hand_over(engine: EngineOptions, server: ServerOptions, models: Mapping[str, str]) -> int:
    """Replace this process by ``vllm serve``.

    Where vLLM is missing, print the command and return ``NOT_INSTALLED``. Raises ``InvalidOption`` as ``vllm_command`` does, and
    for a host beyond this machine without a key.
    """
    from hasten.serving.handover.vllm_arguments import vllm_command
    from hasten.serving.listener import protected_address

    protected_address(server)
    command = vllm_command(engine, server, models)
    for note in command.notes:
        print(f"note: {note}", file=sys.stderr)
    beside_python = Path(sys.executable).with_name("vllm")
    program = str(beside_python) if os.access(beside_python, os.X_OK) else shutil.which("vllm")
    if program is not None:
        sys.stderr.flush()
        os.execve(program, [program, *command.arguments], {**os.environ, **command.environment})
    shown = [f"{name}={value}" for name, value in command.environment.items() if name != "VLLM_API_KEY"]
    if "VLLM_API_KEY" in command.environment:
        print("note: export the API key as VLLM_API_KEY first", file=sys.stderr)
    print(shlex.join([*shown, "vllm", *command.arguments]))
    print("vLLM is not installed here; the command above runs it where it is", file=sys.stderr)
    return NOT_INSTALLED

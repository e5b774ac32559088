"""``ServerOptions``: the options of the HTTP server, of the command line, environment and YAML alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from hasten.core.check_fields import check_fields
from hasten.core.errors import InvalidOption
from hasten.core.field_type import MAX_TEXT, Length, Range

Seconds = Annotated[float, Range(0.001, 86_400)]
Name = Annotated[str, Length(1, MAX_TEXT)]
Names = Annotated[tuple[Name, ...], Length(0, 1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """The options of one server. Raises ``InvalidOption`` that names every field with an invalid value."""

    host: Name = "127.0.0.1"  # beyond loopback ``api_keys`` are required
    port: Annotated[int, Range(0, 65535)] = 8000  # 0: any free port
    api_keys: Names = field(default=(), repr=False)  # each is a tenant of its own; none: no key is asked for
    insecure: bool = False  # permit a host beyond loopback without keys
    # Names of this server that the Host header may have, beside loopback names and ``host``; with or without a port.
    allowed_hosts: Names = ()
    allowed_origins: Names = ()  # web pages that may call the server, such as https://chat.example.org; "*": all
    trust_request_chat_template: bool = False  # permit requests to bring a chat template of their own

    keep_alive: Annotated[float, Range(0, 1e9)] | None = None  # seconds that an idle model stays loaded; None: for ever

    max_body_bytes: Annotated[int, Range(1, 2**30)] = 4 << 20
    max_json_depth: Annotated[int, Range(1, 500)] = 64
    max_messages: Annotated[int, Range(1, 2**20)] = 1024
    max_n: Annotated[int, Range(1, 64)] = 8  # answers of a request, and beams
    max_prompts: Annotated[int, Range(1, 2**16)] = 64  # of a request to completions
    default_max_tokens: Annotated[int, Range(1, 2**24)] = 1024  # of a request that does not say
    # Requests of one model that run or wait; None: as many as run at a time, and four times as many waiting (32 or more).
    max_requests: Annotated[int, Range(1, 2**20)] | None = None
    max_queue_seconds: Seconds = 30.0  # that a request may wait for its first step

    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 30.0
    request_timeout: Seconds = 600.0
    stall_timeout: Seconds = 60.0  # of a client that does not read its stream
    drain_timeout: Seconds = 30.0  # that running requests have after SIGTERM

    def __post_init__(self) -> None:
        check_fields(self, "server option", InvalidOption)

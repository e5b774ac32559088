"""``ServerOptions``: the options of the HTTP server, of the command line, environment and YAML alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from hasten.core.check_fields import Fault, check_fields
from hasten.core.errors import InvalidOption
from hasten.core.field_type import MAX_TEXT, Length, OneOf, Range

Seconds = Annotated[float, Range(0.001, 86_400)]
Name = Annotated[str, Length(1, MAX_TEXT)]
Names = Annotated[tuple[Name, ...], Length(0, 1024)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """The options of one server. Raises ``InvalidOption`` that names every field with an invalid value."""

    host: Name = "127.0.0.1"  # beyond loopback ``api_keys`` are required
    port: Annotated[int, Range(0, 65535)] = 8000  # 0: any free port
    api_keys: Names = field(default=(), repr=False)  # each is a tenant of its own; none: no key is asked for
    admin_keys: Names = field(default=(), repr=False)  # those of ``api_keys`` that may empty the caches of all tenants
    insecure: bool = False  # permit a host beyond loopback without keys
    # Names of this server that the Host header may have, beside loopback names and ``host``; with or without a port.
    allowed_hosts: Names = ()
    allowed_origins: Names = ()  # web pages that may call the server, such as https://chat.example.org; "*": all

    keep_alive: Annotated[float, Range(0, 1e9)] | None = None  # seconds that an idle model stays loaded; None: for ever
    max_loaded_models: Annotated[int, Range(1, 1024)] | None = None  # at a time; the least recently used is unloaded; None: all

    max_headers: Annotated[int, Range(8, 4096)] = 64
    max_header_bytes: Annotated[int, Range(1024, 2**24)] = 64 << 10  # names and values together, and the path
    max_query_bytes: Annotated[int, Range(0, 2**16)] = 8 << 10  # what follows "?" in the path
    max_body_bytes: Annotated[int, Range(1, 2**30)] = 4 << 20
    max_open_body_bytes: Annotated[int, Range(1, 2**40)] = 256 << 20  # of all requests that are not answered yet
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

    access_log: Annotated[str, OneOf(("json", "off"))] = "json"  # a line per request on standard output, without prompts and keys

    def __post_init__(self) -> None:
        check_fields(self, "server option", InvalidOption, self._conflicts)

    def _conflicts(self) -> Iterator[Fault]:
        if set(self.admin_keys) - set(self.api_keys):
            yield Fault("admin_keys", "some of api_keys", "Add them to api_keys")

"""The fields of ``ServerOptions`` and ``ServeOptions`` as options of ``hasten serve``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hasten.cli.options import OptionGroup
from hasten.core.check_fields import check_fields
from hasten.core.errors import InvalidOption
from hasten.core.field_type import MAX_TEXT, Length, OneOf
from hasten.serving.server_options import ServerOptions

Texts = Annotated[tuple[Annotated[str, Length(1, MAX_TEXT)], ...], Length(0, 1024)]

HELP = {
    "host": "Address to listen on; beyond this machine it needs an API key.",
    "port": "Port to listen on; 0 for any free port.",
    "api_keys": "A key that requests must have. Each is a tenant of its own. Other users see it here, but not in --api-key-file.",
    "admin_keys": "One of the API keys, which may empty the caches of all tenants. Other users see it here.",
    "insecure": "Permit a host beyond this machine without an API key.",
    "allowed_hosts": "A further name of this server that the Host header may have.",
    "allowed_origins": "A web page that may call the server, such as https://chat.example.org, or * for all.",
    "keep_alive": "Seconds that an idle model stays loaded; for ever if left out.",
    "max_loaded_models": "Maximum models that are loaded at a time; the least recently used is unloaded for another.",
    "max_headers": "Maximum headers of a request.",
    "max_header_bytes": "Maximum bytes of the headers and the path of a request.",
    "max_query_bytes": "Maximum bytes of the query in a path.",
    "max_body_bytes": "Maximum bytes of a request.",
    "max_open_body_bytes": "Maximum bytes of all requests together that are not answered yet.",
    "max_json_depth": "Maximum nesting of a request.",
    "max_messages": "Maximum messages of a conversation.",
    "max_n": "Maximum answers of a request.",
    "max_prompts": "Maximum prompts of a request.",
    "default_max_tokens": "Maximum tokens of an answer whose request does not say.",
    "max_requests": "Maximum requests of one model that run or wait; if left out, --max-num-seqs that run, and four times as many "
    "(32 or more) that wait.",
    "max_queue_seconds": "Seconds that a request may wait for its first step.",
    "header_timeout": "Seconds that a client has to send the headers of a request.",
    "body_timeout": "Seconds that a client has to send the body of a request.",
    "request_timeout": "Seconds that a request may take.",
    "stall_timeout": "Seconds that a client may leave its stream unread.",
    "drain_timeout": "Seconds that running requests have after SIGTERM.",
    "access_log": "json (a line per request on standard output, without prompts and keys) or off.",
}
SERVE_HELP = {
    "model": "A model, or NAME=MODEL to give it the name that requests use. The first is the default, others load on demand.",
    "served_model_name": "The name that requests use for the first model.",
    "config": "A YAML file of options, by their names here, and of models.",
    "api_key_file": "A file of API keys, one per line.",
    "engine": "hasten, or vllm: run 'vllm serve' with the same options, or print the command where vLLM is not installed.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What ``hasten serve`` serves, and where else it reads options. Raises ``InvalidOption``."""

    model: Texts = ()
    served_model_name: Annotated[str, Length(1, MAX_TEXT)] | None = None
    config: Annotated[str, Length(1, MAX_TEXT)] | None = None
    api_key_file: Texts = ()
    engine: Annotated[str, OneOf(("hasten", "vllm"))] = "hasten"

    def __post_init__(self) -> None:
        check_fields(self, "option of hasten serve", InvalidOption)


SERVE = OptionGroup("serve_options", "Models and files", ServeOptions, SERVE_HELP, {"model": ("-m",)})
SERVER = OptionGroup("server", "Server", ServerOptions, HELP, {"api_keys": ("--api-key",), "admin_keys": ("--admin-key",)})

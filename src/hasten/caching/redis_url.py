"""``RedisUrl``: what the URL of a Redis server says.

No message shows the URL, because it may hold a password.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from hasten.core.errors import InvalidOption

FORMS = "redis://[[user]:password@]host[:port][/database], rediss://... (TLS) or unix:///path[?db=database]"
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SETTINGS = {"redis": ("db",), "rediss": ("db", *TLS_FILES), "unix": ("db", "username", "password")}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisUrl:
    host: str = "localhost"
    port: int = 6379
    path: str | None = None  # of a Unix socket, which replaces host and port
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_files: dict[str, str] = field(default_factory=dict)  # names of ``TLS_FILES`` to paths

    @property
    def name(self) -> str:
        """Return what messages call the server; it holds no secret."""
        return self.path or f"{self.host}:{self.port}"


def parse_redis_url(url: str) -> RedisUrl:
    """Return the parts of a URL. Raises ``InvalidOption`` for whatever would be ignored, too."""
    scheme = url.partition(":")[0].lower()
    if scheme not in _SETTINGS:
        _refuse("has an unknown scheme")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        _refuse("has no valid host and port")
    if parts.fragment or "#" in url:
        _refuse("has a fragment")
    settings = _settings(parts, _SETTINGS[scheme])
    username, password = (None if text is None else unquote(text) for text in (parts.username, parts.password))
    if scheme == "unix":
        if parts.netloc or not parts.path:
            _refuse("has no path of a socket")
        return RedisUrl(
            path=unquote(parts.path),
            database=_database(settings.get("db", "")),
            username=settings.get("username"),
            password=settings.get("password"),
        )
    if not parts.hostname or port == 0:
        _refuse("has no valid host and port")
    return RedisUrl(
        host=unquote(parts.hostname),
        port=6379 if port is None else port,
        database=_database(settings.get("db") or parts.path.removeprefix("/")),
        username=username or None,
        password=password or None,
        tls=scheme == "rediss",
        tls_files={name: settings[name] for name in TLS_FILES if name in settings},
    )


def _settings(parts: SplitResult, allowed: tuple[str, ...]) -> dict[str, str]:
    """Return the settings after the question mark. Time limits and retries are hasten's own."""
    try:
        settings = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        _refuse("has settings that are not name=value")
    if settings.keys() - set(allowed):
        _refuse(f"has an unknown setting after the question mark, where {', '.join(allowed)} may stand")
    return settings


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        _refuse("has no number as its database")
    return int(text or 0)


def _refuse(what: str) -> NoReturn:
    raise InvalidOption(
        f"the URL of the Redis result cache {what}", allowed=FORMS, remedy="In a password write special characters as %XX"
    )

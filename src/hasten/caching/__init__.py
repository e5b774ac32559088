"""Result caches: whole outputs by request, in memory, SQLite or Redis. See ``ResultCache``."""

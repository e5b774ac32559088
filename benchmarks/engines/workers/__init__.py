"""One program per engine, run by that engine's own Python: ``python -m engines.workers.<name>``."""

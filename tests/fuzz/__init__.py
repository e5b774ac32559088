"""Fuzz tests: malformed input by the thousand. ``python -m tests.fuzz`` runs all of them, and a tenth runs in CI."""

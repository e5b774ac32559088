"""Models that are served: loaded on demand, watched, restarted, and unloaded when idle."""

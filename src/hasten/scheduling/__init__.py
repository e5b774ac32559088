"""The scheduler: which tokens the next step computes. Plain Python over integers; it knows neither torch nor models."""

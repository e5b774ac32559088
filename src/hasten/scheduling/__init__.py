"""Who computes what in the next step. Plain Python over integers: it knows neither torch nor models."""

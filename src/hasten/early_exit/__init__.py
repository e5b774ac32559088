"""Early exit: how confident the model is after an early layer, and the measures that say so."""

"""hasten beside its CPU peers: who runs, what they run, in which order, and what the figures mean."""

"""One step after another: plan, run, accept, commit. Requests go in, text comes out."""

"""One logits processor per file, named as its file; ``hasten.sampling.chain`` has their order."""

"""One logits processor per file. The file's name is the processor's name; ``hasten.sampling.chain`` gives the order."""

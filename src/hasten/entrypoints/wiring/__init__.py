"""From engine options to a running engine. Nothing else in hasten connects the parts of an engine.

``build_engine`` works in this order:

1. Choose the backend: it decides the weight formats and the bytes of a KV block.
2. Load all weights: the target's, the drafters' (``load_drafters``), the exit heads (``EarlyExitSetup.load``).
3. Size the KV cache with the memory that the weights and the states of drafters leave. The drafters' KV caches have as many blocks
   as the target's, so one block costs the sum of all of them.
4. Build the target's runner, which allocates its KV cache.
5. Measure the target's step times: drafters need them, and no request holds a KV block yet.
6. Build the drafters and their KV caches, then the scheduler, the early-exit runner and the engine.
"""

"""The modules of a decoder, built from specs.

They compute through ``Ops`` and know neither model families nor the KV pool.

Shape suffixes: T tokens of the step · R rows · E hidden size · X fused q, k and v · H query heads · K key/value heads ·
D head dim · I in features · O out features · F feed-forward · V vocabulary.
"""

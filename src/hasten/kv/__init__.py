"""Where keys and values live: blocks as integers (allocator, prefix index, tables) and, apart from them, the tensors (pool)."""

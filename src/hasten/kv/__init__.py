"""The KV cache: block allocator, block tables, prefix hashes and the memory behind the blocks."""

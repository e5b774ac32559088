"""One decoder, described by data, and one short file per family.

Models know no KV cache: attention calls a context.
"""

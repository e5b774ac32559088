"""One decoder, described by data; one short file per family. Models know no KV cache: attention calls a context."""

"""An engine in a process of its own: the messages, the caller's side and the program.

The two ends share a pair of connected Unix sockets without an address, so no other process can join. A message is its length in
bytes (8 bytes), then msgpack: ``[kind, content]``. The content is checked against its type at the end that reads it.
"""

"""What a request passes before a route sees it.

Hosts, origins, keys, sizes, and its place in the queue.
"""

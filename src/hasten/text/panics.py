"""``is_panic``: tokenizers is written in Rust, and its panics are no ``Exception``."""


def is_panic(error: BaseException) -> bool:
    """Return whether the library gave up where it meets a case that it does not expect.

    Such an error passes every ``except Exception``, but it stops nothing beyond the call.
    """
    return type(error).__name__ == "PanicException"

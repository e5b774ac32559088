"""``split_texts``: validation texts as clusters of windows, to search on and to confirm on.

Windows of one text are alike, so a text is one cluster. The standard error of a mean over clusters is right where windows of a
cluster depend on each other, and too small where clusters do.
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.quality.window import TokenText, Window, spread, windows

Cluster = list[Window]

MIN_CLUSTERS = 4  # fewer tell too little about their spread


def split_texts(texts: Sequence[TokenText], length: int, num_tokens: int) -> tuple[list[Cluster], list[Cluster]]:
    """Return clusters of windows to search on, and of others to confirm on, of ``num_tokens`` together.

    A cluster has the windows of one text. Of fewer than ``2 * MIN_CLUSTERS`` texts each window is a cluster, which understates
    the error; a single text is cut into its first and its second half. Raises ``InvalidOption`` if no token can be predicted.
    """
    texts = [text for text in texts if len(text.token_ids) > 1] or texts
    first, second = texts[0::2], texts[1::2]
    half = num_tokens // 2
    if len(second) >= MIN_CLUSTERS:
        return choose_windows(first, length, half), choose_windows(second, length, num_tokens - half)
    if second:
        chosen, others = windows(first, length, half), windows(second, length, num_tokens - half)
    else:
        chosen = windows(texts, length, num_tokens)
        chosen, others = chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]
    return [[window] for window in chosen], [[window] for window in others]


def choose_windows(texts: Sequence[TokenText], length: int, num_tokens: int) -> list[Cluster]:
    """Return windows of up to ``length`` tokens of each text, ``num_tokens`` in all at most.

    The texts take turns, a window each, so that as many texts as possible have one and none has many. Texts have at least two
    tokens; those without a window are left out.
    """
    waiting = [windows([text], length) for text in texts]
    order = [[waiting[index][number] for number in spread(len(waiting[index]), index)] for index in range(len(texts))]
    clusters: list[Cluster] = [[] for _ in texts]
    turn = 0
    while num_tokens > 0 and (left := [index for index in spread(len(texts)) if turn < len(order[index])]):
        for index in left:
            window = order[index][turn]
            clusters[index].append(Window(window.token_ids[: num_tokens + 1], None))
            num_tokens -= min(num_tokens, window.num_tokens)
            if num_tokens == 0:
                break
        turn += 1
    return [cluster for cluster in clusters if cluster]

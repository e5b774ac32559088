"""Which tokens of a row are the likeliest: the one of all, and the first so many. Whoever has a faster search puts it here.

numpy's searches and sorts use the wide registers where torch's do not: 43 against 536 microseconds for the largest of 64 rows of
8,192 logits, 0.4 against 12.6 milliseconds for the order of 151,936.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Classes of tokens per listed token. Their largest members are searched in place of the vocabulary.
CLASSES = 4
# Past this many times the wanted number, tokens tied with the last of them are not worth listing.
MOST = 4
LOWEST = np.finfo(np.float32).min


def argmax_tokens(logits_RV: Tensor) -> list[int | None]:
    """The token of the largest logit, the lowest id on ties; None where that logit is not a finite number.

    NaN counts as the largest, so the one logit tells whether the row is rows_are_finite.
    """
    if logits_RV.device.type == "cpu":
        values_RV = logits_RV.numpy()
        best_R = values_RV.argmax(axis=1)
        finite_R = np.isfinite(values_RV[np.arange(len(best_R)), best_R])
        tokens, finite = best_R.tolist(), finite_R.tolist()
    else:
        top_R, index_R = logits_RV.max(dim=1)
        tokens, finite = index_R.tolist(), top_R.isfinite().tolist()
    return [token if ok else None for token, ok in zip(tokens, finite, strict=True)]


def likeliest(logits_RV: Tensor, size: int) -> tuple[Ints, Floats, Floats, Flags]:
    """(tokens [R, K], their logits [R, K], a bound [R], whether the row is listed [R]), on the CPU.

    Likeliest first, then by id. K is ``size``, or more where tokens are tied. No token that is left out is above the bound; a
    bound of ``LOWEST`` says that all above -inf are listed. Where a row has fewer than K, its best token fills up, with -inf.
    Rows of too many ties, or without a number, are not listed. ``size * CLASSES`` is at most the vocabulary.
    """
    num_rows, num_tokens = logits_RV.shape
    logits = logits_RV.numpy()
    floor_R = _floors(logits_RV, size)
    index_N = np.flatnonzero(logits >= floor_R[:, None])
    row_N, token_N = np.divmod(index_N, num_tokens)
    count_R = np.bincount(row_N, minlength=num_rows)
    # A row of many ties is not worth listing, and one without numbers cannot be.
    listed_R = (count_R > 0) & (count_R <= MOST * size)
    if not listed_R.all():
        chosen_N = listed_R[row_N]
        index_N, row_N, token_N = index_N[chosen_N], row_N[chosen_N], token_N[chosen_N]
        count_R = np.where(listed_R, count_R, 0)
    place_N = np.arange(len(row_N)) - (np.cumsum(count_R) - count_R)[row_N]
    # One sort of integers orders by value, then by token: the bits of a float, made to fall as the float rises.
    key_RK = np.full((num_rows, max(1, int(count_R.max()))), ~np.uint64(0))
    bits_N = logits.reshape(-1)[index_N].view(np.uint32)
    falling_N = np.where(bits_N >> np.uint32(31), bits_N, ~bits_N & np.uint32(0x7FFFFFFF))
    key_RK[row_N, place_N] = (falling_N.astype(np.uint64) << np.uint64(32)) | token_N.astype(np.uint64)
    key_RK.sort(axis=1)
    token_RK = (key_RK & np.uint64(0xFFFFFFFF)).astype(np.int64)
    none_RK = np.arange(key_RK.shape[1]) >= count_R[:, None]
    token_RK = np.where(none_RK, np.where(listed_R, token_RK[:, 0], 0)[:, None], token_RK)
    value_RK = logits[np.arange(num_rows)[:, None], token_RK]
    value_RK[none_RK] = -np.inf
    return token_RK, value_RK, floor_R, listed_R


def ascending(values_RV: Tensor) -> tuple[Tensor, Tensor]:
    """The sorted values and where they were, both [R, V]: a stable sort of each row. NaN comes last."""
    if values_RV.device.type != "cpu":
        return values_RV.sort(dim=1, stable=True)
    # As in ``likeliest``, but rising; adding 0 makes one number of both zeros.
    bits_RV = (values_RV + 0.0).numpy().view(np.uint32)
    rising_RV = bits_RV ^ np.where(bits_RV >> np.uint32(31), np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    key_RV = (rising_RV.astype(np.uint64) << np.uint64(32)) | np.arange(values_RV.shape[1], dtype=np.uint64)
    key_RV.sort(axis=1)
    order_RV = torch.from_numpy((key_RV & np.uint64(0xFFFFFFFF)).astype(np.int64))
    return values_RV.gather(1, order_RV), order_RV


def _floors(logits_RV: Tensor, size: int) -> Floats:
    """A value per row that at least ``size`` tokens reach [R]; the lowest finite one where fewer tokens are finite.

    The vocabulary is dealt into classes; as many tokens as classes reach the ``size``-th largest of the classes' maxima.
    """
    num_rows, num_tokens = logits_RV.shape
    deals = max(1, num_tokens // (CLASSES * size))
    num_classes = num_tokens // deals
    top_RC = logits_RV[:, : deals * num_classes].reshape(num_rows, deals, num_classes).amax(dim=1).numpy()
    floor_R: Floats = np.partition(top_RC, num_classes - size, axis=1)[:, num_classes - size]
    return np.maximum(floor_R, LOWEST)

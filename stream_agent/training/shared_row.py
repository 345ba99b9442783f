"""Several examples in one row that compute their common beginning once: as the rank lane ranks, so it can be taught.

    «system» «history» «A: …  B: …» «A»                 «system» «history» «A: … B: …» «A» «B: … A: …» «B»
    «system» «history» «B: …  A: …» «B»        ─▶        └ each token sees its own example's tokens alone ┘

All orders of the choices share everything but their last lines, and all samples of a training share the system turn. The tokens
form a tree; a row holds each once, with its place in its example as its position and a mask that shows it its own ancestors. The
gradient is that of the examples side by side, at a fraction of the tokens. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Row(NamedTuple):
    """A tree of tokens in one row of N.

    Attributes:
        ids: Tokens.
        labels: What is to be learned, in place; `ignored` elsewhere.
        positions: Of each token in its example, from 0.
        seen: (N, N); `seen[i, j]` if token i may look at token j.
    """

    ids: list[int]
    labels: list[int]
    positions: list[int]
    seen: NDArray[np.bool_]


def one_row(examples: Sequence[tuple[Sequence[int], Sequence[int]]], *, ignored: int) -> Row:
    """Tokens and labels of each example as one row.

    The last token before an answer is never shared: what follows each token in the row is then what follows it in its example
    wherever something is to be learned, so that labels shift by one place as in any row.
    """
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    for tokens, wanted in examples:
        answer = next((place for place, label in enumerate(wanted) if label != ignored), len(wanted))
        parent = -1
        for place, (token, label) in enumerate(zip(tokens, wanted, strict=True)):
            may_share = place < answer - 1
            node = children.get((parent, token), -1) if may_share else -1
            if node < 0:
                node = len(ids)
                ids.append(token)
                labels.append(label)
                positions.append(place)
                parents.append(parent)
                if may_share:
                    children[parent, token] = node
            parent = node
    seen = np.zeros((len(ids), len(ids)), dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] = seen[parent]
        seen[node, node] = True
    return Row(ids, labels, positions, seen)

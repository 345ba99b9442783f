"""A frame number that can be read back from pixels: lets tests and benchmarks know which frame arrived, and how late.

Eight columns and five rows of blocks, 8 px wide, in the top left corner of the luma plane: 32 bits of number and 8 of
CRC. A block is one JPEG block of one value, so it passes through JPEG as it is.
"""

from __future__ import annotations

import numpy as np

from stream_agent.source.protocol import Planes

BLOCK_PX = 8
COLUMNS = 8
ROWS = 5
_DARK, _BRIGHT = 40, 216
_MARGIN = 40
"""A block closer to the middle of the two values than this is not trusted."""


def write_index(planes: Planes, index: int) -> None:
    """Draw `index` modulo 2**32 into the top left 64 × 40 px of `planes`, (3 H / 2, W) uint8."""
    rows, width = planes.shape
    height = rows * 2 // 3
    number = (index & 0xFFFFFFFF).to_bytes(4, "big")
    octets = np.frombuffer(number + bytes([_crc8(number)]), np.uint8)
    bits = np.unpackbits(octets).reshape(ROWS, 1, COLUMNS, 1)
    blocks = planes[: ROWS * BLOCK_PX, : COLUMNS * BLOCK_PX].reshape(ROWS, BLOCK_PX, COLUMNS, BLOCK_PX)
    blocks[...] = np.where(bits, _BRIGHT, _DARK)
    chroma = planes.reshape(-1)[height * width :].reshape(2, height // 2, width // 2)
    chroma[:, : ROWS * BLOCK_PX // 2, : COLUMNS * BLOCK_PX // 2] = 128


def read_index(planes: Planes) -> int | None:
    """The number in `planes`, (3 H / 2, W) uint8, or None when there is none that can be trusted."""
    if planes.shape[0] * 2 // 3 < ROWS * BLOCK_PX or planes.shape[1] < COLUMNS * BLOCK_PX:
        return None
    corner = planes[: ROWS * BLOCK_PX, : COLUMNS * BLOCK_PX].reshape(ROWS, BLOCK_PX, COLUMNS, BLOCK_PX)
    levels = corner[:, 2:-2, :, 2:-2].mean(axis=(1, 3)) - (_DARK + _BRIGHT) / 2
    if np.abs(levels).min() < _MARGIN:
        return None
    octets = np.packbits(levels > 0).tobytes()
    return int.from_bytes(octets[:4], "big") if _crc8(octets[:4]) == octets[4] else None


def _crc8(octets: bytes) -> int:
    """CRC-8 (x^8 + x^2 + x + 1) from 0xFF, so that an all-dark corner is no valid number."""
    crc = 0xFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = (crc << 1) ^ 0x107 if crc & 0x80 else crc << 1
    return crc

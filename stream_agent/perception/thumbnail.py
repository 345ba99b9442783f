"""The reduced picture every recogniser and the gate look at: planes in, a small upright RGB picture out.

Y, U and V are reduced each by itself with area averaging and only then mixed to RGB, so a 1080p frame is read once and
never converted at full size. Area averaging weighs every source pixel, so nothing aliases. Chroma siting is ignored: at
this reduction it is less than half a pixel.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from stream_agent.messages import ColourSpace, FrameHeader
from stream_agent.perception.protocol import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, Thumbnail
from stream_agent.source.protocol import Planes

_ROTATE: Final = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def thumbnail(planes: Planes, header: FrameHeader) -> Thumbnail:
    """Reduce (3 H / 2, W) uint8 planes to the upright (224, 320, 3) RGB picture; `planes` is only read.

    Raises:
        ValueError: The planes are not those of the header (our own mistake: both come from one source).
    """
    return reduced(planes, header, width=THUMBNAIL_WIDTH, height=THUMBNAIL_HEIGHT)


def reduced(planes: Planes, header: FrameHeader, *, width: int, height: int) -> NDArray[np.uint8]:
    """The upright RGB picture of (3 H / 2, W) uint8 planes, (height, width, 3); `planes` is only read.

    Raises:
        ValueError: The planes are not those of the header (our own mistake: both come from one source).
    """
    to_width, to_height = width, height
    height, width = header.height, header.width
    if planes.shape != (height * 3 // 2, width) or height % 2 or width % 2 or min(height, width) < 2:
        raise ValueError(
            f"planes of shape {planes.shape} do not belong to a {width}x{height} frame; they must be (3 H / 2, W), H and W even"
        )
    if header.rotation_deg not in (0, *_ROTATE):
        raise ValueError(f"rotation_deg={header.rotation_deg} is not 0, 90, 180 or 270")
    quarter_turned = header.rotation_deg in (90, 270)
    size = (to_height, to_width) if quarter_turned else (to_width, to_height)
    chroma = planes[height:].reshape(2, height // 2, width // 2)  # flat: U may end in the middle of a stacked row
    yuv = cv2.merge([_reduce(planes[:height], size), _reduce(chroma[0], size), _reduce(chroma[1], size)])
    rgb = cv2.transform(yuv, _TO_RGB[header.colour])
    if header.rotation_deg:
        rgb = cv2.rotate(rgb, _ROTATE[header.rotation_deg])
    return np.asarray(rgb, dtype=np.uint8)


def _reduce(plane: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Area average to `size` (width, height); planes smaller than that are interpolated, an axis at a time.

    Exact halvings come first: averaging 2x2 is vectorised in OpenCV and the general area filter is not, which makes 1080p
    three times faster. Every source pixel still has its share; where a target pixel's edge cuts a source pixel, the shares
    differ a little from the general filter's (0.2 to 0.7 grey levels in the mean on endoscope pictures).
    """
    width, height = size
    while (
        plane.shape[1] >= 2 * width and plane.shape[0] >= 2 * height and not (plane.shape[0] % 2 or plane.shape[1] % 2)
    ):
        half = (plane.shape[1] // 2, plane.shape[0] // 2)
        plane = np.asarray(cv2.resize(plane, half, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    across = cv2.INTER_AREA if plane.shape[1] >= width else cv2.INTER_LINEAR
    down = cv2.INTER_AREA if plane.shape[0] >= height else cv2.INTER_LINEAR
    if across == down:
        return np.asarray(cv2.resize(plane, size, interpolation=across), dtype=np.uint8)
    narrowed = cv2.resize(plane, (width, plane.shape[0]), interpolation=across)
    return np.asarray(cv2.resize(narrowed, size, interpolation=down), dtype=np.uint8)


def _matrix(red: float, blue: float, *, full_range: bool) -> NDArray[np.float32]:
    """The (3, 4) affine map of YCbCr to RGB, 0 to 255, from the luma weights of red and blue.

    ITU-R BT.601-7 and BT.709-6: R = Y + 2 (1 - red) Cr, B = Y + 2 (1 - blue) Cb, G so that red R + green G + blue B = Y;
    limited range has Y in 16 to 235 and chroma in 16 to 240.
    """
    green = 1.0 - red - blue
    luma = 1.0 if full_range else 255.0 / 219.0
    chroma = 1.0 if full_range else 255.0 / 224.0
    to_red = 2.0 * (1.0 - red) * chroma
    to_blue = 2.0 * (1.0 - blue) * chroma
    linear = np.array(
        [
            [luma, 0.0, to_red],
            [luma, -to_blue * blue / green, -to_red * red / green],
            [luma, to_blue, 0.0],
        ]
    )
    origin = np.array([0.0 if full_range else 16.0, 128.0, 128.0])
    return np.hstack([linear, -(linear @ origin)[:, None]]).astype(np.float32)


_TO_RGB: Final[dict[ColourSpace, NDArray[np.float32]]] = {
    "bt601": _matrix(0.299, 0.114, full_range=False),
    "bt601-full": _matrix(0.299, 0.114, full_range=True),
    "bt709": _matrix(0.2126, 0.0722, full_range=False),
    "bt709-full": _matrix(0.2126, 0.0722, full_range=True),
}

"""How far apart two colours are, to a reader with full colour vision and to one without green cones."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb

# Of linear RGB: what a reader with deuteranopia sees. G. Machado, M. Oliveira and L. Fernandes, "A
# Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, severity 1.
DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
_XYZ = np.array(  # of linear sRGB, over the white point D65
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
) / np.array([[0.95047], [1.0], [1.08883]])


def apart(one: object, other: object) -> float:
    """The distance in CIELAB, the smaller of the two readers'. 2 can just be seen side by side."""
    return min(
        float(np.linalg.norm(_lab(one, vision) - _lab(other, vision))) for vision in (np.eye(3), DEUTERANOPIA)
    )


def hues_apart(one: object, other: object) -> float:
    """Degrees on the circle of hues."""
    between = abs(_hue(one) - _hue(other))
    return min(between, 360 - between)


def _lab(colour: object, vision: np.ndarray) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = _XYZ @ np.clip(vision @ linear, 0, 1)
    x, y, z = (np.cbrt(one) if one > 0.008856 else 7.787 * one + 16 / 116 for one in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _hue(colour: object) -> float:
    red, green, blue = to_rgb(colour)
    return float(np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)))

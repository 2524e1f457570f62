"""Colours, as CSS classes, so that light mode, dark mode and print can each have their own.

`s0`…`s32` is a sequential ramp (little to much), `d0`…`d32` a diverging one (negative, zero, positive). Lightness
changes steadily along each arm, and the diverging pair is blue and orange: both are read alike with any colour vision.
"""

from __future__ import annotations

STEPS = 33
_RAMPS = {
    "light": {
        "s": ("#eef3f2", "#c5dfe0", "#8cc3c8", "#4f9db3", "#2c7096", "#27477c", "#231942"),
        "d": ("#1b3f7a", "#4a7fbd", "#a9c7e4", "#f3f2ee", "#f0c197", "#cf7a36", "#833a06"),
    },
    "dark": {
        "s": ("#202a38", "#27476e", "#2c7096", "#45a0b0", "#80c8b4", "#c9e6b0", "#fff7c4"),
        "d": ("#9fd0ff", "#5b9be0", "#2f5787", "#262c35", "#7d5230", "#d98b4a", "#ffcf9e"),
    },
}


def css(mode: str, scope: str = "") -> str:
    """Rules that set `--c` for each step of each ramp, e.g. `.s7{--c:#8cc3c8}`."""
    return "".join(
        f"{scope}.{ramp}{k}{{--c:{_blend(anchors, k / (STEPS - 1))}}}"
        for ramp, anchors in _RAMPS[mode].items()
        for k in range(STEPS)
    )


def step(place: float) -> int:
    """The step of a ramp for a place in [0, 1]."""
    return round(place * (STEPS - 1))


def _blend(anchors: tuple[str, ...], place: float) -> str:
    at = place * (len(anchors) - 1)
    k = min(int(at), len(anchors) - 2)
    pairs = zip(_channels(anchors[k]), _channels(anchors[k + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (at - k)):02x}" for a, b in pairs)


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]

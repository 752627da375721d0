"""A chart of lines as SVG, written by hand: legible on light and on dark, and without a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

_STYLE: Final = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 15px; font-weight: 600 }
  .grid { stroke: #8c959f; stroke-opacity: .3 }
  .axis { stroke: #57606a }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .axis { stroke: #8b949e } }
"""
_COLOURS: Final = ("#2da44e", "#cf222e", "#bf8700", "#0969da", "#8250df", "#bc4c00", "#1b7c83", "#6e7781")
"""Each with enough contrast to white and to near-black."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 206, 64, 48


@dataclass(frozen=True)
class Line:
    """A named series; *marks* are dots on it, with what they say."""

    name: str
    points: Sequence[tuple[float, float]]
    marks: Sequence[tuple[float, float, str]] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes."""

    title: str
    subtitle: str
    x_label: str
    y_label: str
    x: tuple[float, float, float]
    """From, to, and the step between two ticks."""
    y: tuple[float, float, float]
    lines: Sequence[Line] = field(default_factory=list)
    width: int = 860
    height: int = 420
    upright: float | None = None
    """Where a vertical line stands."""

    def svg(self) -> str:
        """The whole file."""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img">',
            f"<title>{escape(self.title)}</title>",
            f"<style>{_STYLE}</style>",
            self._text(_LEFT, 24, self.title, "title"),
            self._text(_LEFT, 44, self.subtitle),
        ]
        parts += self._grid()
        for number, line in enumerate(self.lines):
            parts += self._line(line, _COLOURS[number % len(_COLOURS)], number)
        return "\n".join([*parts, "</svg>", ""])

    def _at_x(self, value: float) -> float:
        low, high, _ = self.x
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def _at_y(self, value: float) -> float:
        low, high, _ = self.y
        inside = min(max(value, low), high)
        return self.height - _BOTTOM - (inside - low) / (high - low) * (self.height - _TOP - _BOTTOM)

    @staticmethod
    def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
        named = f' class="{kind}"' if kind else ""
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(text)}</text>'

    def _grid(self) -> list[str]:
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        parts = []
        for value in _ticks(self.y):
            y = self._at_y(value)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
            parts.append(self._text(_LEFT - 8, y + 4, f"{value:g}", anchor="end"))
        parts += [
            self._text(self._at_x(value), bottom + 18, f"{value:g}", anchor="middle")
            for value in _ticks(self.x)
        ]
        parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
        if self.upright is not None:
            parts.append(
                f'<path class="axis" stroke-dasharray="4 4" d="M{self._at_x(self.upright):.1f} {_TOP}V{bottom}"/>'
            )
        middle = (_LEFT + right) / 2
        parts.append(self._text(middle, self.height - 10, self.x_label, anchor="middle"))
        y = (_TOP + bottom) / 2
        parts.append(
            f'<g transform="rotate(-90 16 {y:.1f})">{self._text(16, y, self.y_label, anchor="middle")}</g>'
        )
        return parts

    def _line(self, line: Line, colour: str, number: int) -> list[str]:
        path = "L".join(f"{self._at_x(x):.1f} {self._at_y(y):.1f}" for x, y in line.points)
        dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts = [f'<path class="line" stroke="{colour}"{dashes} d="M{path}"/>']
        for x, y, what in line.marks:
            at_x, at_y = self._at_x(x), self._at_y(y)
            parts.append(
                f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="5" fill="{colour}"><title>{escape(what)}</title></circle>'
            )
        x, y = self.width - _RIGHT + 16, _TOP + 8 + 22 * number
        parts.append(f'<path class="line" stroke="{colour}"{dashes} d="M{x} {y}h22"/>')
        parts.append(self._text(x + 30, y + 4, line.name))
        return parts


def _ticks(axis: tuple[float, float, float]) -> list[float]:
    low, high, step = axis
    return [low + step * k for k in range(int((high - low) / step + 1e-9) + 1)]

"""The page of one episode: pictures, action curves and windows, played in a browser; nothing is fetched from anywhere.

Texts of a data set are foreign: they reach the page escaped, and a content security policy admits our script alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from robovlms.inspection.episode import Replay

MAX_POINTS = 2000  # of a curve
WIDTH, HEIGHT, PAD = 1000.0, 64.0, 5.0  # of a curve, in its own units

STYLE = """
:root { color-scheme: light; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --blue: #2563a8; --pale: #dbe8f6;
        --orange: #d9822b; --red: #b83a3a; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 24px 64px; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
a { color: var(--blue); text-decoration: none; } a:hover { text-decoration: underline; }
h1 { font-size: 24px; margin: 2px 0 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 28px 0 8px; } p { margin: 4px 0; color: var(--soft); overflow-wrap: anywhere; }
.crumb { font-size: 13px; } .warn { color: var(--red); }
.views { display: flex; flex-wrap: wrap; gap: 16px; margin: 18px 0 12px; }
figure { margin: 0; } figure img { display: block; height: 300px; max-width: 100%; border-radius: 6px;
       background: var(--line); image-rendering: auto; } figcaption { font-size: 13px; color: var(--soft); }
.controls { display: flex; align-items: center; gap: 14px; position: sticky; top: 0; background: #fff; padding: 10px 0;
       border-bottom: 1px solid var(--line); z-index: 2; }
.controls input { flex: 1; accent-color: var(--blue); }
button, select { font: inherit; border: 1px solid var(--line); background: #fff; border-radius: 6px; padding: 4px 14px;
       cursor: pointer; color: var(--ink); }
button { min-width: 88px; background: var(--blue); color: #fff; border: 0; }
#clock { min-width: 190px; text-align: right; font-variant-numeric: tabular-nums; }
.window { border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px 14px; }
.window p b { color: var(--ink); }
.strip { display: grid; gap: 2px; align-items: center; margin-top: 10px; }
.strip .name { font-size: 12px; color: var(--soft); padding-right: 8px; white-space: nowrap; }
.strip img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 3px; display: block;
       background: var(--line); }
.cell { height: 22px; border-radius: 3px; font-size: 10px; line-height: 22px; text-align: center; color: #fff;
       background: var(--blue); overflow: hidden; } .chunk { height: 5px; border-radius: 1px; background: var(--blue); }
.cell.masked, .chunk.masked { background: repeating-linear-gradient(45deg, #e5e7eb 0 4px, #f8fafc 4px 8px);
       color: var(--soft); } .cell.none, .chunk.none { background: #f3f4f6; color: transparent; }
.key { display: inline-block; width: 26px; height: 12px; border-radius: 3px; vertical-align: -1px;
       margin: 0 4px 0 12px; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(500px, 1fr)); gap: 10px 24px; }
.curve .head { display: flex; justify-content: space-between; font-size: 13px; }
.curve .head b { overflow-wrap: anywhere; } .curve .now { color: var(--blue); font-variant-numeric: tabular-nums; }
.curve .range { color: var(--soft); font-size: 11px; margin-left: 8px; font-weight: 400; }
.curve svg { width: 100%; height: 64px; display: block; background: #fafafa; border-radius: 4px; cursor: crosshair; }
.curve.off { opacity: .5; }
svg polyline { fill: none; stroke: var(--blue); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
svg .zero { stroke: #d1d5db; vector-effect: non-scaling-stroke; stroke-dasharray: 3 3; }
svg .cursor { stroke: var(--orange); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
svg .seen { fill: var(--pale); } svg .future { fill: #f6ead9; }
@media (max-width: 600px) { .curves { grid-template-columns: 1fr; } figure img { height: auto; width: 100%; } }
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const slider = byId("slider"), play = byId("play"), speed = byId("speed");
const views = Object.keys(data.pictures), w = data.window, k = data.chunk, s = w + k - 1;
const picture = (view, step) =>
  data.pictures[view][Math.min(Math.floor(step / data.stride), data.pictures[view].length - 1)];
const blank = "data:image/gif;base64,R0lGODlhAQABAIAAAOXn6wAAACH5BAAAAAAALAAAAAABAAEAAAICRAEAOw==";
const strip = byId("strip"), thumbs = {}, cells = [], chunks = [];
function add(tag, css, row, column) {
  const node = document.createElement(tag);
  node.className = css;
  node.style.gridRow = row; node.style.gridColumn = column;
  strip.appendChild(node);
  return node;
}
function build() {
  strip.style.gridTemplateColumns = `max-content repeat(${s}, minmax(4px, 56px))`;
  let row = 1;
  for (const view of views) {
    add("div", "name", row, 1).textContent = view;
    thumbs[view] = [];
    for (let i = 0; i < w; i++) thumbs[view].push(add("img", "", row, i + 2));
    row++;
  }
  add("div", "name", row, 1).textContent = "actions";
  for (let i = 0; i < s; i++) cells.push(add("div", "cell", row, i + 2));
  row++;
  add("div", "name", `${row} / ${row + w}`, 1).textContent = "chunks";
  for (let i = 0; i < w; i++)
    for (let j = 0; j < k; j++) chunks.push([add("div", "chunk", row + i, i + j + 2), i + j, i]);
}
function setImage(image, source) { const wanted = source || blank; if (image.src !== wanted) image.src = wanted; }
function show(step) {
  slider.value = step;
  byId("clock").textContent = `step ${step} of ${data.steps - 1} · ${(step / data.hz).toFixed(2)} s`;
  for (const view of views) setImage(byId("view-" + views.indexOf(view)), picture(view, step));
  const mask = data.masks[step], full = mask !== undefined;
  for (const view of views)
    thumbs[view].forEach((image, i) => setImage(image, full ? picture(view, step + i) : null));
  cells.forEach((cell, i) => {
    cell.className = "cell " + (!full ? "none" : mask[i] === "1" ? "" : "masked");
    cell.textContent = s <= 30 ? step + i : "";
    cell.title = !full ? "" : `action ${step + i}: ${mask[i] === "1" ? "real" : "masked, repeats the last one"}`;
  });
  for (const [cell, i, frame] of chunks) {
    cell.className = "chunk " + (!full ? "none" : mask[i] === "1" ? "" : "masked");
    cell.title = full ? `frame ${step + frame} is supervised action ${step + i}` : "";
  }
  const real = full ? [...mask].filter((c) => c === "1").length : 0;
  byId("told").textContent = full
    ? `frames ${step} to ${step + w - 1} are seen; of the actions ${step} to ${step + s - 1}, ` +
      `${real} are real and ${s - real} masked`
    : `no window starts at step ${step}: it would need ${w} frames`;
  const scale = 1000 / data.steps;
  document.querySelectorAll(".curve").forEach((curve, i) => {
    curve.querySelector(".now").textContent = Number(data.values[i][step]).toPrecision(4);
    const line = curve.querySelector(".cursor"), x = (step + 0.5) * scale;
    line.setAttribute("x1", x); line.setAttribute("x2", x);
    const seen = curve.querySelector(".seen"), future = curve.querySelector(".future");
    seen.setAttribute("x", step * scale); seen.setAttribute("width", full ? w * scale : 0);
    future.setAttribute("x", (step + w) * scale);
    future.setAttribute("width", full ? Math.max(0, Math.min(k - 1, data.steps - step - w)) * scale : 0);
  });
}
let last = null, carry = 0;
function tick(now) {
  if (last === null) return;
  carry += ((now - last) / 1000) * data.hz * Number(speed.value);
  last = now;
  const ahead = Math.floor(carry);
  carry -= ahead;
  if (ahead) show((Number(slider.value) + ahead) % data.steps);
  requestAnimationFrame(tick);
}
function toggle() {
  if (last === null) { last = performance.now(); carry = 0; play.textContent = "Pause"; requestAnimationFrame(tick); }
  else { last = null; play.textContent = "Play"; }
}
const clamp = (step) => Math.max(0, Math.min(data.steps - 1, step));
play.addEventListener("click", toggle);
slider.addEventListener("input", () => show(Number(slider.value)));
document.addEventListener("keydown", (event) => {
  if (["INPUT", "SELECT", "BUTTON"].includes(event.target.tagName)) return;
  if (event.key === " ") { toggle(); event.preventDefault(); }
  if (event.key === "ArrowRight") show(clamp(Number(slider.value) + 1));
  if (event.key === "ArrowLeft") show(clamp(Number(slider.value) - 1));
});
document.querySelectorAll(".curve svg").forEach((svg) => svg.addEventListener("click", (event) => {
  const box = svg.getBoundingClientRect();
  show(clamp(Math.floor(((event.clientX - box.left) / box.width) * data.steps)));
}));
build();
show(clamp(Number(location.hash.slice(1)) || 0));
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body></html>
"""


def write_page(replay: Replay, path: Path, *, title: str) -> Path:
    """Write the page of an episode; a number behind # in its address is the step it opens at."""
    data = {
        "steps": replay.num_steps,
        "hz": replay.hz,
        "window": replay.window_size,
        "chunk": replay.chunk_size,
        "stride": replay.stride,
        "masks": replay.masks,
        "pictures": replay.pictures,
        "values": [_plain(column) for column in [*replay.actions.T, *replay.proprio.T]],
    }
    page = PAGE.format(
        digest=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii"),
        title=escape(f"{title}, episode {replay.episode}"),
        style=STYLE,
        body="\n".join(_body(replay, title)),
        data=embed_json(data),
        script=SCRIPT,
    )
    path.write_text(page, encoding="utf-8")
    return path


def embed_json(value: object) -> str:
    """Return JSON that nothing in it can end the script element around."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # all but ASCII is written as \\u....
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(column: Float32[np.ndarray, "t"]) -> list[float]:
    return [float(f"{value:.5g}") for value in np.nan_to_num(column).tolist()]


def _body(replay: Replay, title: str) -> list[str]:
    seconds = replay.num_steps / replay.hz
    lines = [
        f'<div class="crumb"><a href="index.html">{escape(title)}</a> / episode {replay.episode}</div>',
        f"<h1>{escape(replay.instruction) or '(no instruction)'}</h1>",
        f"<p>{replay.num_steps} steps, {seconds:.1f} s at {replay.hz:g} Hz. {escape(replay.source)}</p>",
    ]
    if replay.recorded_steps > replay.num_steps:
        lines.append(f"<p>The first {replay.num_steps} of {replay.recorded_steps} steps are shown.</p>")
    if replay.stride > 1:
        lines.append(f"<p>Every {replay.stride}th picture is embedded.</p>")
    if replay.faults.count:
        faults = f"{replay.faults.count} pictures cannot be read: {replay.faults.messages[0]}"
        lines.append(f'<p class="warn">{escape(faults)}</p>')
    figures = [
        f'<figure><img id="view-{number}" alt="{escape(view)}">'
        f"<figcaption>{escape(view)}, recorded {escape(replay.sizes[view])}</figcaption></figure>"
        for number, view in enumerate(replay.pictures)
    ]
    speeds = "".join(
        f'<option value="{speed}"{" selected" if speed == 1 else ""}>{speed:g} x</option>'
        for speed in (0.1, 0.25, 0.5, 1, 2, 4)
    )
    lines += [
        f'<div class="views">{"".join(figures)}</div>',
        '<div class="controls"><button id="play" type="button">Play</button>'
        f'<input id="slider" type="range" min="0" max="{replay.num_steps - 1}" value="0" aria-label="step">'
        f'<select id="speed" aria-label="speed">{speeds}</select><span id="clock"></span></div>',
        "<h2>The window that starts here</h2>",
        f'<div class="window"><p><b>“{escape(replay.instruction)}”</b></p><p id="told"></p>'
        '<div class="strip" id="strip"></div><p><span class="key cell"></span>real, taught'
        '<span class="key cell masked"></span>masked: past the end of the episode, no loss</p></div>',
        f"<h2>Actions{_untaught(replay)}</h2>",
        _curves(replay.actions, replay.names, replay.supervised),
    ]
    if replay.proprio_names:
        lines += [
            "<h2>Proprioception</h2>",
            _curves(replay.proprio, replay.proprio_names, [True] * len(replay.proprio_names)),
        ]
    return lines


def _untaught(replay: Replay) -> str:
    names = [name for name, supervised in zip(replay.names, replay.supervised, strict=True) if not supervised]
    return f" ({escape(', '.join(names))}: not recorded, so not taught)" if names else ""


def _curves(columns: Float32[np.ndarray, "t n"], names: list[str], supervised: list[bool]) -> str:
    curves = [_curve(*column) for column in zip(np.nan_to_num(columns).T, names, supervised, strict=True)]
    return f'<div class="curves">{"".join(curves)}</div>'


def _curve(values: Float32[np.ndarray, "t"], name: str, supervised: bool) -> str:
    low, high = float(values.min()), float(values.max())
    span = high - low
    steps = np.arange(0, len(values), -(-len(values) // MAX_POINTS))
    x = (steps + 0.5) * WIDTH / len(values)
    share = (values[steps] - low) / span if span > 0 else np.full(len(steps), 0.5)
    y = HEIGHT - PAD - share * (HEIGHT - 2 * PAD)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    zero = ""
    if low < 0 < high:
        level = HEIGHT - PAD + low / span * (HEIGHT - 2 * PAD)
        zero = f'<line class="zero" x1="0" x2="1000" y1="{level:.1f}" y2="{level:.1f}"/>'
    extent = f"{low:.3g} … {high:.3g}" if span > 0 else "never changes"
    return (
        f'<div class="curve{"" if supervised else " off"}"><div class="head">'
        f'<b>{escape(name)}<span class="range">{extent}'
        '</span></b><span class="now"></span></div><svg viewBox="0 0 1000 64" preserveAspectRatio="none">'
        '<rect class="seen" y="0" height="64" width="0"/><rect class="future" y="0" height="64" width="0"/>'
        f'{zero}<polyline points="{points}"/><line class="cursor" y1="0" y2="64" x1="0" x2="0"/></svg></div>'
    )

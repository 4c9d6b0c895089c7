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
  byId("coverage").textContent = full
    ? `frames ${step} to ${step + w - 1} are observed; of the actions ${step} to ${step + s - 1}, ` +
      `${real} are real and ${s - real} masked`
    : `no window starts at step ${step}: it would need ${w} frames`;
  const scale = 1000 / data.steps;
  document.querySelectorAll(".curve").forEach((curve, i) => {
    curve.querySelector(".now").textContent = Number(data.values[i][step]).toPrecision(4);
    const line = curve.querySelector(".cursor"), x = (step + 0.5) * scale;
    line.setAttribute("x1", x); line.setAttribute("x2", x);
    const observed = curve.querySelector(".observed"), future = curve.querySelector(".future");
    observed.setAttribute("x", step * scale); observed.setAttribute("width", full ? w * scale : 0);
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

// The page that `vsr preview -o x.html` writes.
import { card, el, fill } from "./dom.js";
import { moving } from "./loops.js";
import { comparison, times } from "./preview.js";

const found = JSON.parse(document.getElementById("data").textContent);
const source = found.panes[0];
const loops = found.panes
  .slice(1)
  .filter((pane) => pane.strip && source.strip)
  .map((pane) => ({ time_s: found.time_s, before: source.strip, after: pane.strip, frames: pane.frames, width: found.width, height: found.height, fps: found.fps, name: pane.model }));

fill(
  document.getElementById("page"),
  el(
    "header",
    { class: "hero" },
    el("p", { class: "eyebrow" }, "vsr preview"),
    el("h1", {}, found.name),
    el("p", { class: "lead" }, `${found.panes.length - 1} ${found.panes.length === 2 ? "model" : "models"} on the same part of frame ${found.frame}`),
  ),
  card("Compare", null, comparison(found)),
  loops.length ? card("Moving", null, moving(loops)) : null,
  card("Time", "Measured on this machine for the part alone", times(found)),
  el("footer", { class: "soft" }, "This page makes no network requests."),
);
document.documentElement.dataset.ready = "true";

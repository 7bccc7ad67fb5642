// Parts that the report and the live page share: tiles, tables, workers, checks.
import { bytes, clock, count, el, percent, speed } from "./dom.js";

const STATES = { complete: "good", running: "live", finishing: "live", merging: "live", planning: "live", starting: "live", poisoned: "bad" };

export function pill(state) {
  return el("span", { class: `pill ${STATES[state] || "note"}` }, state);
}

export function tile(name, value, more) {
  return el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, value, more ? el("small", {}, more) : null));
}

export function tiles(...made) {
  return el("dl", { class: "tiles" }, made);
}

export function table(rows, label) {
  return el(
    "table",
    { class: "facts", "aria-label": label },
    el("tbody", {}, rows.map(([key, value]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, value)))),
  );
}

export function folded(title, content) {
  return el("details", { class: "fold" }, el("summary", {}, title), content);
}

export function checkList(found) {
  const marks = { good: "✓", note: "i", bad: "✕" };
  const words = { good: "passed", note: "note", bad: "failed" };
  return el(
    "ul",
    { class: "checks" },
    found.map((check) =>
      el(
        "li",
        { class: check.state },
        el("i", { role: "img", "aria-label": words[check.state] }, marks[check.state]),
        el("div", {}, el("b", {}, check.title), el("p", { class: "soft" }, check.text)),
      ),
    ),
  );
}

export function workersTable(lanes) {
  const cell = (text, number = false) => el("td", number ? { class: "number" } : {}, text);
  const head = ["worker", "node", "device", "shards", "frames", "fps", "lived", "end"];
  const line = (lane) => {
    const lived = Math.max(lane.stop_s - lane.start_s, 1e-3);
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, lane.worker),
      cell(lane.node),
      cell(lane.device),
      cell(count(lane.shards), true),
      cell(count(lane.frames), true),
      cell(speed(lane.frames / lived), true),
      cell(clock(lived), true),
      el("td", { class: lane.end === "died" ? "bad" : "" }, lane.end || "working"),
    );
  };
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Workers" },
    el(
      "table",
      { class: "list" },
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, lanes.slice(0, 500).map(line)),
    ),
  );
}

export function copyable(text, label) {
  const said = el("span", { class: "soft", role: "status" });
  const code = el("pre", { class: "code", tabindex: "0", "aria-label": label }, text);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      said.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code);
      said.textContent = "selected; press Ctrl C";
    }
  };
  return el("div", { class: "copyable" }, code, el("p", {}, el("button", { type: "button", class: "tool", onclick: copy }, "copy"), " ", said));
}

export function progressBar(share, label) {
  const shown = Math.max(0, Math.min(1, share));
  return el(
    "div",
    { class: "progress", role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * shown) },
    el("i", { style: { width: `${100 * shown}%` } }),
    el("span", {}, percent(shown)),
  );
}

export function sizes(document_) {
  const [from, to] = [document_.size_in, document_.size_out];
  return `${from[0]} × ${from[1]} → ${to[0]} × ${to[1]}`;
}

export function fileSize(number) {
  return number === null || number === undefined ? "–" : bytes(number);
}

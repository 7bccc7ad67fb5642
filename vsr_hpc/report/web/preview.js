// A preview: any two of the pictures beside each other, and all of them moving.
import { card, clock, el, fill, place } from "./dom.js";
import { viewer } from "./slider.js";

export function comparison(found) {
  let [left, right] = [0, found.panes.length - 1];
  const stage = el("div", {});
  const choose = (label, first, set) =>
    el(
      "label",
      { class: "choose" },
      el("span", { class: "soft" }, label),
      el(
        "select",
        { onchange: (event) => (set(Number(event.target.value)), draw()) },
        found.panes.map((pane, index) => el("option", { value: index, selected: index === first }, pane.label)),
      ),
    );

  function draw() {
    const [one, two] = [found.panes[left], found.panes[right]];
    const [width, height] = [found.width, found.height];
    const caption = `Frame ${found.frame}, at ${place(found.time_s)}; the part ${found.box.join(", ")} of the input`;
    const scene = { time_s: found.time_s, frame: found.frame, before: one.picture, after: two.picture, width, height, caption };
    fill(stage, viewer([scene], { names: [one.label, two.label], name: "preview" }));
  }

  draw();
  return el(
    "div",
    { class: "comparison" },
    el("div", { class: "chooses" }, choose("left", left, (index) => (left = index)), choose("right", right, (index) => (right = index))),
    stage,
  );
}

export function times(found) {
  const rows = found.panes.filter((pane) => pane.seconds_per_frame !== null);
  return el(
    "table",
    { class: "facts", "aria-label": "Time" },
    el(
      "tbody",
      {},
      rows.map((pane) =>
        el("tr", {}, el("th", { scope: "row" }, pane.model), el("td", {}, `${pane.seconds_per_frame.toPrecision(2)} s for this part; about ${clock(pane.seconds_in_all)} for the whole clip with one worker here`)),
      ),
    ),
  );
}

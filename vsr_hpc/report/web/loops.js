// Small crops that move: strips of frames, shown one after the other, before and after in step.
import { el, isStill, place } from "./dom.js";

export function moving(loops) {
  return el("div", { class: "loops" }, loops.map(one));
}

function one(loop) {
  const strips = [loop.before, loop.after].map((source, side) =>
    el("img", { src: source, alt: `${side ? "after" : "before"}, moving, at ${place(loop.time_s)}`, draggable: "false" }),
  );
  const windows = strips.map((strip, side) =>
    el(
      "div",
      { class: "window", style: { aspectRatio: `${loop.width} / ${loop.height}` } },
      strip,
      el("span", { class: "tag left" }, side ? "after" : "before"),
    ),
  );
  const timing = { duration: (1000 * loop.frames) / loop.fps, iterations: Infinity, easing: `steps(${loop.frames})` };
  const moves = strips.map((strip) => {
    strip.style.height = `${100 * loop.frames}%`;
    return strip.animate([{ transform: "translateY(0)" }, { transform: "translateY(-100%)" }], timing);
  });
  let isPlaying = !isStill();
  const toggle = el("button", { type: "button", class: "tool", onclick: () => play(!isPlaying) });
  const root = el(
    "figure",
    { class: "loop" },
    el("div", { class: "pair" }, windows),
    el("figcaption", { class: "below" }, el("span", { class: "soft" }, `${loop.name ? loop.name + ", " : ""}${loop.frames} frames from ${place(loop.time_s)}`), toggle),
  );

  function play(wanted) {
    isPlaying = wanted;
    for (const move of moves) {
      if (wanted) move.play();
      else move.pause();
    }
    toggle.textContent = wanted ? "pause" : "play";
    toggle.setAttribute("aria-label", wanted ? "Pause this loop" : "Play this loop");
    root.dataset.playing = String(wanted);
  }

  play(isPlaying);
  return root;
}

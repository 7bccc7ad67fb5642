// The live page: a list of runs, one run, or the form for a new one. The address after # says which.
import { count, el, fill, speed } from "./dom.js";
import { pill, progressBar } from "./sections.js";
import { runPage } from "./run.js";
import { createPage } from "./create.js";

const page = document.getElementById("page");
let leave = () => {};

export function listen(path, told) {
  const source = new EventSource(path);
  source.onmessage = (event) => told(JSON.parse(event.data));
  return () => source.close();
}

export async function send(path, body, method = "POST") {
  const answer = await fetch(path, { method, body: body === undefined ? undefined : JSON.stringify(body) });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error || `the server answered ${answer.status}`);
  return said;
}

function listPage() {
  const list = el("ul", { class: "runs", "aria-label": "Runs" });
  const empty = el("p", { class: "card soft", hidden: true }, "No runs here yet. Drop a clip to begin one, or call `vsr upscale`.");
  fill(
    page,
    el("div", { class: "bar" }, el("h1", {}, "Runs"), el("a", { class: "button primary", href: "#new" }, "New run")),
    list,
    empty,
  );
  return listen("api/events", (told) => {
    empty.hidden = told.runs.length > 0;
    fill(list, told.runs.map((run) => el("li", {}, line(run))));
    document.documentElement.dataset.ready = "list";
  });
}

function line(run) {
  const share = run.frames ? run.frames_shown / run.frames : 0;
  const rate = run.fps ? `, ${speed(run.fps)} fps` : "";
  const more = run.why || run.trouble;
  return el(
    "a",
    { class: "run", href: `#run=${run.id}` },
    el("div", {}, el("div", { class: "top" }, el("b", {}, run.name), pill(run.state)), el("div", { class: "uri soft" }, run.uri), more ? el("div", { class: "bad" }, more) : null),
    run.frames
      ? el("div", { class: "side" }, progressBar(share, run.name), el("small", {}, `${count(run.frames_shown)} of ${count(run.frames)} frames${rate}`))
      : el("div", { class: "side" }),
  );
}

function show() {
  leave();
  delete document.documentElement.dataset.ready;
  const number = /^#run=([0-9a-f]{16})$/.exec(location.hash);
  if (number) leave = runPage(page, number[1], listen, send);
  else if (location.hash === "#new") leave = createPage(page, send);
  else leave = listPage();
  scrollTo(0, 0);
}

addEventListener("hashchange", show);
show();

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
  const search = el("input", { type: "search", placeholder: "name or model", "aria-label": "Search", oninput: () => draw() });
  const states = el("select", { "aria-label": "State", onchange: () => draw() }, ["all states", "at work", "complete", "left"].map((name) => el("option", { value: name }, name)));
  const trouble = el("p", { class: "trouble", role: "alert", hidden: true });
  let runs = [];
  const empty = el("p", { class: "card soft", hidden: true }, "No runs here yet. Drop a clip to begin one, or call `vsr upscale`.");
  fill(
    page,
    el("div", { class: "bar" }, el("h1", {}, "Runs"), el("a", { class: "button primary", href: "#new" }, "New run")),
    el("div", { class: "find" }, search, states),
    trouble,
    list,
    empty,
  );

  function draw() {
    const text = search.value.trim().toLowerCase();
    const kept = runs.filter((run) => (states.value === "all states" || kindOf(run.state) === states.value) && `${run.name} ${run.model || ""} ${run.uri}`.toLowerCase().includes(text));
    fill(list, kept.map((run) => el("li", {}, line(run), remove(run))));
  }

  function remove(run) {
    if (kindOf(run.state) === "at work") return null;
    const ask = async () => {
      try {
        await send(`api/runs/${run.id}/forget`);
        runs = runs.filter((each) => each.id !== run.id);
        draw();
      } catch (error) {
        trouble.hidden = false;
        trouble.textContent = error.message;
      }
    };
    return el("button", { type: "button", class: "tool remove", title: "Take this run off the list; its files stay", "aria-label": `Remove ${run.name} from the list`, onclick: ask }, "remove");
  }

  return listen("api/events", (told) => {
    empty.hidden = told.runs.length > 0;
    runs = told.runs;
    draw();
    document.documentElement.dataset.ready = "list";
  });
}

function kindOf(state) {
  if (state === "complete") return "complete";
  return ["running", "starting", "planning", "merging", "waiting"].includes(state) ? "at work" : "left";
}

function line(run) {
  const began = run.began_s ? new Date(1000 * run.began_s).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "";
  const about = [began, run.model].filter(Boolean).join(", ");
  const thumb = run.shards_done ? el("img", { class: "shot", alt: "", loading: "lazy", src: `api/runs/${run.id}/thumbnail?${run.shards_done}` }) : el("span", { class: "shot" });
  const share = run.frames ? run.frames_shown / run.frames : 0;
  const rate = run.fps ? `, ${speed(run.fps)} fps` : "";
  const more = run.why || run.trouble;
  return el(
    "a",
    { class: "run", href: `#run=${run.id}` },
    thumb,
    el("div", {}, el("div", { class: "top" }, el("b", {}, run.name), pill(run.state)), about ? el("div", { class: "soft" }, about) : null, el("div", { class: "uri soft" }, run.uri), more ? el("div", { class: "bad" }, more) : null),
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

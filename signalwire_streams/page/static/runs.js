// Bulk runs, each with the rate of its requests over the last minute.

import { drawRates } from "./charts.js";
import { clock, element, find, inWords, number, write } from "./dom.js";

const runs = new Map(); // by id: what the server sent, and the elements that show it

export function receiveRun(facts) {
  if (!runs.has(facts.id)) {
    const run = createRun();
    runs.set(facts.id, run);
    find("runs").append(run.card);
    find("runs").hidden = false;
  }
  Object.assign(runs.get(facts.id), { facts, isDirty: true });
}

export function removeRun(id) {
  runs.get(id)?.card.remove();
  runs.delete(id);
}

export function keepRuns(ids) {
  for (const id of runs.keys()) if (!ids.has(id)) removeRun(id);
}

/** Draws the runs that changed, or all of them. */
export function drawRuns(all = false) {
  for (const run of runs.values()) if (run.isDirty || all) drawRun(run);
}

function createRun() {
  const card = element("article", "run");
  const head = card.appendChild(element("div", "head"));
  const [title, state] = [element("h2"), element("p")];
  head.append(title, state);
  const bar = card.appendChild(element("div", "progress")).appendChild(element("i"));
  const parts = card.appendChild(element("div", "body"));
  const [list, chart] = [element("dl"), element("canvas")];
  chart.setAttribute("role", "img");
  parts.append(list, chart);
  const errors = card.appendChild(element("ul", "errors"));
  return { card, title, state, bar, list, chart, errors };
}

function drawRun(run) {
  const { facts } = run;
  run.isDirty = false;
  write(run.title, facts.title);
  const done = facts.total === null ? number(facts.done) : `${number(facts.done)} of ${number(facts.total)}`;
  const left = facts.left === null || facts.ended ? "" : ` · ${clock(facts.left)} left`;
  write(run.state, `${done} · ${facts.ended ? "ended after" : "running for"} ${clock(facts.seconds)}${left}`);
  run.bar.parentElement.hidden = !facts.total;
  run.bar.style.transform = `scaleX(${facts.total ? Math.min(1, facts.done / facts.total) : 0})`;
  const pairs = Object.entries({ ...facts.counts, attempts: facts.attempts, retried: facts.retries });
  run.list.replaceChildren(...pairs.flatMap(([key, value]) => [
    element("dt", "", inWords(key)), element("dd", "", number(value)),
  ]));
  const rate = facts.ended ? facts.attempts / Math.max(facts.seconds, 1) : facts.rates.at(-1) ?? 0;
  const limit = facts.limit === null ? "" : `, limit ${number(Math.round(facts.limit))}`;
  const label = `${number(Math.round(rate))} requests/s${facts.ended ? " on average" : ""}${limit}`;
  run.chart.setAttribute("aria-label", `Requests per second over the last minute: ${label}`);
  drawRates(run.chart, facts.rates, facts.limit, 60, label);
  run.errors.replaceChildren(...facts.errors.map((error) => {
    const item = element("li");
    item.append(element("b", "", `${number(error.count)} × ${error.label}`));
    if (error.example) item.append(element("p", "", error.example));
    item.append(element("p", "", error.advice));
    return item;
  }));
}


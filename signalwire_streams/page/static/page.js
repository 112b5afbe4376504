// The page: what the server sends is kept in maps, and drawn at most once in each frame. All text is set as text.

import { drawRates, drawWave } from "./charts.js";
import { Sound, addressOf } from "./sound.js";

const WAVE = 1200; // levels of a minute: two for each tenth of a second
const RESORT = 2000; // milliseconds between two sorts by numbers that change
const find = (id) => document.getElementById(id);
const rows = new Map(); // by id: what the server sent, and the elements that show it
const runs = new Map();
const [body, filter, empty, panel] = [find("rows"), find("filter"), find("empty"), find("panel")];
const sound = new Sound(showSound);

let receives = true;
let opened = null; // the row in the panel
let wave = [];
let details = null;
let order = { key: "age", descending: true };
let sortedAt = 0;
let needsSort = false;
let hidden = 0;

history.replaceState(null, "", location.pathname); // without the link's token, which has been used

// Small helpers.

function element(kind, className = "", text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const number = (value) => value.toLocaleString("en");
const delayText = (value) => value < 1000 ? `${value} ms` : `${(value / 1000).toFixed(1)} s`;
const inWords = (text) => text.replaceAll("_", " ");

function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (value) => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

let isScheduled = false;
function schedule() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    draw();
  });
}

// The connection.

let delay = 500;
function connect() {
  const socket = new WebSocket(addressOf("socket"));
  socket.onopen = () => {
    delay = 500;
    show("live", "Connected");
    if (opened !== null && rows.has(opened.id)) ask(opened.id);
  };
  socket.onmessage = ({ data }) => {
    receive(JSON.parse(data));
    schedule();
  };
  socket.onclose = async ({ reason }) => {
    show("lost", reason || "Connection lost, trying again…");
    if (!reason) await explain();
    setTimeout(connect, delay);
    delay = Math.min(delay * 2, 5000);
  };
  connect.socket = socket;
}

/** Asks why a WebSocket failed, which browsers do not tell. */
async function explain() {
  try {
    const { status } = await fetch("./", { cache: "no-store" });
    if (status === 403) show("lost", "The program was restarted: open the new link that it printed.");
  } catch {
    // It is not reachable.
  }
}

function show(state, text) {
  const status = find("connection");
  status.dataset.state = state;
  write(status, text);
  document.body.classList.toggle("lost", state === "lost");
}

function ask(id) {
  if (connect.socket?.readyState === WebSocket.OPEN) connect.socket.send(JSON.stringify({ open: id }));
}

// What the server sends.

function receive(message) {
  if ("open" in message) {
    if (opened?.id === message.open) receiveDetails(message);
    return;
  }
  if (message.all) {
    receives = message.receives;
    needsSort = true;
    const current = new Set(message.rows.map(({ id }) => id));
    for (const id of rows.keys()) if (!current.has(id)) remove(id);
    const shown = new Set(message.runs.map(({ id }) => id));
    for (const [id, run] of runs) if (!shown.has(id)) (run.card.remove(), runs.delete(id));
    if (opened !== null && rows.has(opened.id)) ask(opened.id);
  }
  hidden = message.hidden;
  for (const id of message.gone ?? []) remove(id);
  for (const facts of message.rows ?? []) receiveRow(facts);
  const levels = message.levels ?? [];
  for (let index = 0; index < levels.length; index += 3) {
    const row = rows.get(levels[index]);
    if (row) setLevels(row, levels[index + 1], levels[index + 2]);
  }
  for (const facts of message.runs ?? []) receiveRun(facts);
}

function receiveDetails(message) {
  if ("past" in message) wave = message.past;
  if ("wave" in message) wave.push(...message.wave);
  wave.splice(0, wave.length - WAVE);
  if ("details" in message) details = message.details;
}

const dirty = new Set();
const visible = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const row = rows.get(Number(entry.target.dataset.id));
    if (row) {
      row.isVisible = entry.isIntersecting;
      dirty.add(row);
    }
  }
  schedule();
}, { rootMargin: "200px" });

function setLevels(row, inbound, outbound) {
  row.levels = [inbound, outbound];
  if (row.isVisible) dirty.add(row);
}

function receiveRow(facts) {
  let row = rows.get(facts.id);
  if (row === undefined) {
    row = { id: facts.id, isVisible: true, ...createRow(facts.id) };
    rows.set(facts.id, row);
    needsSort = true;
  }
  row.facts = facts;
  row.began = performance.now() / 1000 - facts.age;
  row.text = `${facts.name} ${facts.target} ${facts.state}`.toLowerCase();
  row.levels = facts.levels;
  dirty.add(row);
}

function createRow(id) {
  const line = element("tr");
  line.dataset.id = id;
  const cells = {};
  for (const key of ["name", "target", "age", "levels", "lost", "delay", "state"]) {
    cells[key] = line.appendChild(element("td", key));
  }
  const button = cells.name.appendChild(element("button"));
  const meters = [0, 1].map(() => cells.levels.appendChild(element("span", "meter")).appendChild(element("i")));
  cells.levels.setAttribute("aria-hidden", "true");
  visible.observe(line);
  return { line, cells, button, meters };
}

function remove(id) {
  const row = rows.get(id);
  if (row === undefined) return;
  visible.unobserve(row.line);
  row.line.remove();
  rows.delete(id);
  dirty.delete(row);
  needsSort = true;
}

// Drawing.

function draw() {
  const now = performance.now();
  if (needsSort || (["level", "lost", "delay", "state"].includes(order.key) && now - sortedAt > RESORT)) sort(now);
  for (const row of dirty) drawRow(row);
  dirty.clear();
  for (const run of runs.values()) if (run.isDirty) drawRun(run);
  if (opened !== null) drawPanel();
}

function drawRow(row) {
  const { facts, cells, meters, levels } = row;
  meters.forEach((meter, side) => {
    if (meter.level !== levels[side]) {
      meter.level = levels[side];
      meter.style.clipPath = `inset(0 ${100 - levels[side] / 0.6}% 0 0)`;
    }
  });
  if (row.drawn === facts) return;
  row.drawn = facts;
  write(row.button, facts.name);
  row.button.title = facts.name;
  write(cells.target, facts.target || "–");
  cells.target.title = facts.target;
  drawAge(row);
  write(cells.lost, number(facts.lost));
  cells.lost.classList.toggle("some", facts.lost > 0);
  write(cells.delay, facts.frames ? delayText(facts.delay) : "–");
  cells.delay.classList.toggle("some", facts.delay >= 200);
  write(cells.state, facts.state);
  const isEnded = facts.state.startsWith("ended");
  cells.state.className = `state dot ${isEnded ? "ended" : { live: "live", "no audio": "silent" }[facts.state] ?? ""}`;
  cells.state.title = facts.state;
  row.line.classList.toggle("ended", isEnded);
  const matches = row.text.includes(filter.value.trim().toLowerCase());
  if (matches === row.line.hidden) needsSort = true;
}

function drawAge(row) {
  if (!row.facts.state.startsWith("ended")) row.lasted = performance.now() / 1000 - row.began;
  write(row.cells.age, clock(row.lasted ?? row.facts.age));
}

setInterval(() => {
  if (document.hidden || document.body.classList.contains("lost")) return;
  for (const row of rows.values()) if (row.isVisible && row.facts) drawAge(row);
  if (needsSort) schedule();
}, 1000);

function valueOf(row) {
  if (order.key === "age") return -row.began;
  if (order.key === "level") return Math.max(...row.levels);
  return row.facts[order.key];
}

function sort(now) {
  sortedAt = now;
  needsSort = false;
  const text = filter.value.trim().toLowerCase();
  const all = [...rows.values()];
  const sign = order.descending ? -1 : 1;
  const compare = typeof all[0]?.facts[order.key] === "string"
    ? (a, b) => a.localeCompare(b, "en", { numeric: true })
    : (a, b) => a - b;
  all.sort((one, other) => sign * compare(valueOf(one), valueOf(other)) || one.id - other.id);
  let shown = 0;
  let next = body.firstElementChild;
  for (const row of all) {
    row.line.hidden = !row.text.includes(text);
    shown += row.line.hidden ? 0 : 1;
    if (row.line === next) next = next.nextElementSibling;
    else body.insertBefore(row.line, next);
  }
  for (const heading of document.querySelectorAll("#streams th")) {
    if (heading.dataset.key === order.key) {
      heading.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
    } else heading.removeAttribute("aria-sort");
  }
  const total = rows.size === 1 ? "1 stream" : `${number(rows.size)} streams`;
  const more = hidden ? `, ${number(hidden)} more not shown` : "";
  write(find("count"), (text ? `${number(shown)} of ${total}` : total) + more);
  find("streams").hidden = !receives && rows.size === 0;
  empty.hidden = shown > 0;
  write(empty, text && rows.size
    ? `No stream matches “${filter.value.trim()}”.`
    : "No streams yet. Each one appears here when SignalWire connects.");
}

// One stream.

function open(id) {
  const row = rows.get(id);
  if (row === undefined || opened?.id === id) return;
  close();
  opened = row;
  [wave, details] = [[], null];
  row.line.classList.add("chosen");
  row.button.setAttribute("aria-expanded", "true");
  panel.hidden = false;
  document.body.classList.add("opened");
  ask(id);
  schedule();
  if (matchMedia("(max-width: 800px)").matches) find("close").focus();
}

function close() {
  if (opened === null) return;
  const row = opened;
  sound.stop();
  opened = null;
  row.line.classList.remove("chosen");
  row.button.removeAttribute("aria-expanded");
  panel.hidden = true;
  document.body.classList.remove("opened");
  ask(null);
}

const LABELS = {
  frames: "frames", bytes: "bytes", missing: "missing", gaps: "gaps", duplicates: "repeated",
  out_of_order: "out of order", dropped: "dropped", jitter: "jitter, ms", delay_ms: "delay, ms",
  max_delay_ms: "greatest delay, ms",
};

let drawnDetails = null;
function drawPanel() {
  const { facts } = opened;
  write(find("panel-name"), facts.name);
  write(find("panel-target"), facts.target);
  const unreadable = details?.malformed ? `${number(details.malformed)} unreadable messages` : "";
  write(find("panel-state"), [facts.state, details?.format, unreadable].filter(Boolean).join(" · "));
  find("listen").disabled = !sound.playing && !(details?.playable && rows.has(opened.id));
  drawWave(find("wave"), wave, WAVE);
  const meter = find("heard").getContext("2d");
  meter.clearRect(0, 0, 48, 16);
  meter.fillStyle = getComputedStyle(panel).getPropertyValue("--accent");
  for (let bar = 0; bar < sound.level * 8; bar += 1) meter.fillRect(bar * 6, 12 - bar, 4, 4 + bar);
  if (details === drawnDetails) return;
  drawnDetails = details;
  const [head, lines] = find("statistics").children;
  const names = Object.keys(details?.tracks ?? {});
  const top = element("tr");
  top.append(element("td"), ...names.map((name) => heading(name, "col")));
  head.replaceChildren(top);
  lines.replaceChildren(...Object.entries(LABELS).map(([key, label]) => {
    const line = element("tr");
    line.append(heading(label, "row"), ...names.map((name) => element("td", "", number(details.tracks[name][key]))));
    return line;
  }));
  find("events").replaceChildren(...[...(details?.events ?? [])].reverse().map(([age, text]) => {
    const item = element("li");
    item.append(element("time", "", clock(age)), element("span", "", text));
    return item;
  }));
}

function heading(text, scope) {
  const made = element("th", "", text);
  made.scope = scope;
  return made;
}

function showSound(text, isBad = false) {
  write(find("sound"), text);
  find("sound").classList.toggle("bad", isBad);
  const button = find("listen");
  button.setAttribute("aria-pressed", String(sound?.playing ?? false));
  write(button, sound?.playing ? "Stop" : "Listen");
  find("mute").disabled = !sound?.playing;
}

function toggleListening() {
  if (sound.playing) sound.stop();
  else if (opened !== null && !find("listen").disabled) sound.start(opened.id);
}

function toggleMuted() {
  sound.setMuted(!sound.muted);
  find("mute").setAttribute("aria-pressed", String(sound.muted));
}

// Runs.

function receiveRun(facts) {
  let run = runs.get(facts.id);
  if (run === undefined) {
    run = createRun();
    runs.set(facts.id, run);
    find("runs").append(run.card);
    find("runs").hidden = false;
  }
  Object.assign(run, { facts, isDirty: true });
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

// Input.

body.addEventListener("click", ({ target }) => {
  const line = target.closest("tr");
  if (line) open(Number(line.dataset.id));
});
find("streams").querySelector("thead").addEventListener("click", ({ target }) => {
  const { key } = target.closest("th")?.dataset ?? {};
  if (!key) return;
  order = { key, descending: order.key === key ? !order.descending : !["name", "target", "state"].includes(key) };
  needsSort = true;
  schedule();
});
filter.addEventListener("input", () => {
  needsSort = true;
  schedule();
});
find("close").addEventListener("click", leave);
find("listen").addEventListener("click", toggleListening);
find("mute").addEventListener("click", toggleMuted);
find("volume").addEventListener("input", ({ target }) => sound.setVolume(target.value / 100));
window.addEventListener("resize", () => {
  for (const run of runs.values()) run.isDirty = true;
  schedule();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.dispatchEvent(new Event("resize")));

function leave() {
  const row = opened;
  close();
  if (row !== null && rows.has(row.id)) row.button.focus();
}

function move(step) {
  const lines = [...body.children].filter((line) => !line.hidden);
  const current = document.activeElement?.closest?.("#rows tr");
  const at = current ? lines.indexOf(current) + step : step > 0 ? 0 : lines.length - 1;
  const line = lines[Math.max(0, Math.min(at, lines.length - 1))];
  line?.querySelector("button").focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target === filter;
  const isSlider = event.target === find("volume");
  const actions = {
    Escape: () => {
      if (isTyping && filter.value) {
        filter.value = "";
        needsSort = true;
        schedule();
      } else if (isTyping) filter.blur();
      else leave();
    },
    ArrowDown: () => move(1),
    ArrowUp: () => move(-1),
    "/": () => filter.focus(),
    l: toggleListening,
    m: toggleMuted,
  };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = actions[key];
  if (!action || (isTyping && key.length === 1) || (isSlider && key.startsWith("Arrow"))) return;
  event.preventDefault();
  action();
});

sort(0);
connect();

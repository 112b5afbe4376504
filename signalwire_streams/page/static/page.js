// The page: its connection, the stream that is open in the panel, and the keyboard.

import { drawWave } from "./charts.js";
import { clock, element, find, number, write } from "./dom.js";
import { Keepers } from "./keepers.js";
import { drawRuns, keepRuns, receiveRun, removeRun } from "./runs.js";
import { Sound, addressOf } from "./sound.js";
import { StreamTable } from "./streams.js";

const WAVE = 600; // levels of a minute: two for each fifth of a second
const panel = find("panel");
const streams = new StreamTable(find("streams"), schedule);
const keepers = new Keepers(schedule);
const sound = new Sound(showSound);

let opened = null; // the row in the panel
let wave = [];
let details = null;

history.replaceState(null, "", location.pathname); // without the link's token, which has been used

const tables = () => [...keepers.tables.values(), streams];

let isScheduled = false;
function schedule() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame((now) => {
    isScheduled = false;
    for (const table of tables()) table.draw(now);
    drawRuns();
    if (opened !== null) drawPanel();
  });
}

setInterval(() => {
  if (document.hidden || document.body.classList.contains("lost")) return;
  for (const table of tables()) table.drawAges();
}, 1000);

// The connection.

let delay = 500;
function connect() {
  const socket = new WebSocket(addressOf("socket"));
  socket.onopen = () => {
    delay = 500;
    show("live", "Connected");
    if (opened !== null && streams.rows.has(opened.id)) ask(opened.id);
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
    const current = new Set(["rows", "runs", "keepers", "targets"].flatMap((part) => message[part]).map(({ id }) => id));
    streams.keep(current);
    keepers.keep(current);
    keepRuns(current);
    streams.section.hidden = !message.receives && message.rows.length === 0;
    if (opened !== null && streams.rows.has(opened.id)) ask(opened.id);
  }
  streams.hidden = message.hidden;
  for (const id of message.gone ?? []) for (const part of [streams, keepers]) part.remove(id);
  for (const id of message.gone ?? []) removeRun(id);
  for (const facts of message.rows ?? []) streams.receive(facts);
  streams.receiveLevels(message.levels ?? []);
  for (const facts of message.runs ?? []) receiveRun(facts);
  for (const facts of message.keepers ?? []) keepers.receive(facts);
  for (const facts of message.targets ?? []) keepers.receiveTarget(facts);
}

function receiveDetails(message) {
  if ("past" in message) wave = message.past;
  if ("wave" in message) wave.push(...message.wave);
  wave.splice(0, wave.length - WAVE);
  if ("details" in message) details = message.details;
}

// One stream.

function open(id) {
  const row = streams.rows.get(id);
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
  find("listen").disabled = !sound.playing && !(details?.playable && streams.rows.has(opened.id));
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

// Input.

streams.body.addEventListener("click", ({ target }) => {
  const line = target.closest("tr");
  if (line) open(Number(line.dataset.id));
});
find("close").addEventListener("click", leave);
find("listen").addEventListener("click", toggleListening);
find("mute").addEventListener("click", toggleMuted);
find("volume").addEventListener("input", ({ target }) => sound.setVolume(target.value / 100));
const redraw = () => {
  drawRuns(true);
  schedule();
};
window.addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

function leave() {
  const row = opened;
  close();
  if (row !== null && streams.rows.has(row.id)) row.button.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const table = tables().find(({ filter }) => filter === event.target); // that is being filtered
  const isSlider = event.target === find("volume");
  const actions = {
    Escape: () => {
      if (table?.filter.value) table.clearFilter();
      else if (table) table.filter.blur();
      else leave();
    },
    ArrowDown: () => streams.move(1),
    ArrowUp: () => streams.move(-1),
    "/": () => tables().find(({ section }) => !section.hidden)?.filter.focus(),
    l: toggleListening,
    m: toggleMuted,
  };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = actions[key];
  if (!action || (table && key.length === 1) || (isSlider && key.startsWith("Arrow"))) return;
  if (action() !== false) event.preventDefault();
});

schedule();
connect();

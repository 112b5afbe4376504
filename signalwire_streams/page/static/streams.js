// The table of streams.

import { clock, duration, element, number, write } from "./dom.js";
import { Table } from "./table.js";

const DOTS = { live: "live", "no audio": "waiting" };

export class StreamTable extends Table {
  constructor(section, schedule) {
    const unsteady = ["level", "lost", "delay", "state"];
    super(section, { order: { key: "age", descending: true }, unsteady, schedule });
  }

  textOf({ name, target, state }) {
    return `${name} ${target} ${state}`;
  }

  titleOf(all) {
    return all.length === 1 ? "1 stream" : `${number(all.length)} streams`;
  }

  valueOf(row, key) {
    return key === "level" ? Math.max(...row.levels) : super.valueOf(row, key);
  }

  receive(facts) {
    super.receive(facts).levels = facts.levels;
  }

  /** Takes the levels of many rows: an id, the inbound and the outbound level of each. */
  receiveLevels(levels) {
    for (let index = 0; index < levels.length; index += 3) {
      const row = this.rows.get(levels[index]);
      if (row === undefined) continue;
      row.levels = [levels[index + 1], levels[index + 2]];
      if (row.isVisible) this.dirty.add(row);
    }
  }

  createRow(id) {
    const row = super.createRow(id);
    const { name, level } = row.cells;
    level.setAttribute("aria-hidden", "true");
    const meters = [0, 1].map(() => level.appendChild(element("span", "meter")).appendChild(element("i")));
    return { ...row, meters, button: name.appendChild(element("button")) };
  }

  drawRow(row, isNew) {
    const { facts, cells, meters, levels } = row;
    meters.forEach((meter, side) => {
      if (meter.level === levels[side]) return;
      meter.level = levels[side];
      meter.style.clipPath = `inset(0 ${100 - levels[side] / 0.6}% 0 0)`;
    });
    if (!isNew) return;
    write(row.button, facts.name);
    row.button.title = facts.name;
    write(cells.target, facts.target || "–");
    cells.target.title = facts.target;
    write(cells.lost, number(facts.lost));
    cells.lost.classList.toggle("some", facts.lost > 0);
    write(cells.delay, facts.frames ? duration(facts.delay) : "–");
    cells.delay.classList.toggle("some", facts.delay >= 200);
    write(cells.state, facts.state);
    row.isOver = facts.state.startsWith("ended");
    cells.state.className = `state dot ${row.isOver ? "ended" : DOTS[facts.state] ?? ""}`;
    cells.state.title = facts.state;
    row.line.classList.toggle("ended", row.isOver);
  }

  drawAge(row) {
    if (!row.isOver) row.lasted = performance.now() / 1000 - row.began;
    write(row.cells.age, clock(row.lasted ?? row.facts.age));
  }

  /** Moves the focus by some rows. Returns whether there is a row. */
  move(step) {
    const lines = [...this.body.children].filter((line) => !line.hidden);
    const current = document.activeElement?.closest?.("tr");
    const at = lines.includes(current) ? lines.indexOf(current) + step : step > 0 ? 0 : lines.length - 1;
    const line = lines[Math.max(0, Math.min(at, lines.length - 1))];
    line?.querySelector("button").focus();
    return line !== undefined;
  }
}

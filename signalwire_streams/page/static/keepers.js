// The table of what one keeper keeps: what needs attention comes first.

import { clock, element, find, number, write } from "./dom.js";
import { Table } from "./table.js";

const STATES = ["failing", "in doubt", "waiting", "streaming"];
const DOTS = { failing: "bad", "in doubt": "waiting", streaming: "live" };

class KeeperTable extends Table {
  constructor(section, schedule) {
    super(section, { order: { key: "state", descending: false }, unsteady: ["state"], schedule });
  }

  textOf({ name, target, kind, state, reason }) {
    return `${name} ${target} ${kind} ${state} ${reason}`;
  }

  titleOf(all) {
    const counts = STATES.map((state) => [all.filter(({ facts }) => facts.state === state).length, state]);
    return `${number(all.length)} kept` + counts.filter(([count]) => count)
      .map(([count, state], index) => `${index ? ", " : ": "}${number(count)} ${state}`).join("");
  }

  valueOf(row, key) {
    return key === "state" ? STATES.indexOf(row.facts.state) : super.valueOf(row, key);
  }

  receiveKeeper({ name, notes, hidden }) {
    write(this.section.querySelector("h2"), `Keeper ${name}`);
    this.section.setAttribute("aria-label", `Keeper ${name}`);
    this.section.querySelector(".notes").replaceChildren(...notes.map((note) => element("li", "", note)));
    this.hidden = hidden;
    this.needsSort = true;
  }

  receive(facts) {
    const before = this.rows.get(facts.id)?.facts.state;
    super.receive(facts);
    this.needsSort ||= before !== facts.state;
  }

  createRow(id) {
    const row = super.createRow(id);
    row.cells.name.append(element("span"), element("small"));
    return row;
  }

  drawRow({ facts, cells }, isNew) {
    if (!isNew) return;
    write(cells.name.firstChild, facts.name);
    write(cells.name.lastChild, facts.target || facts.kind);
    cells.name.title = `${facts.kind} ${facts.target || facts.name}`;
    write(cells.state, facts.state);
    cells.state.className = `state dot ${DOTS[facts.state] ?? ""}`;
    write(cells.reason, facts.reason);
  }

  drawAge(row) {
    write(row.cells.age, `${clock(performance.now() / 1000 - row.began)} ago`);
  }
}

export class Keepers {
  constructor(schedule) {
    this.schedule = schedule;
    this.tables = new Map(); // by id
  }

  receive(facts) {
    let table = this.tables.get(facts.id);
    if (table === undefined) {
      const section = find("keeper").content.cloneNode(true).firstElementChild;
      find("keepers").append(section);
      table = new KeeperTable(section, this.schedule);
      this.tables.set(facts.id, table);
    }
    table.receiveKeeper(facts);
  }

  receiveTarget(facts) {
    this.tables.get(facts.keeper)?.receive(facts);
  }

  /** Removes all keepers and targets but those of some ids. */
  keep(ids) {
    for (const [id, table] of this.tables) ids.has(id) ? table.keep(ids) : this.remove(id);
  }

  /** Removes a keeper or a target. */
  remove(id) {
    this.tables.get(id)?.section.remove();
    this.tables.delete(id);
    for (const table of this.tables.values()) table.remove(id);
  }
}

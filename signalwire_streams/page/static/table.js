// A table of what the server sends, filtered and sorted. Only rows in view are drawn between two sorts.

import { element, number, write } from "./dom.js";

const RESORT = 2000; // milliseconds between two sorts by what changes all the time

export class Table {
  /** `order` is the first one; `unsteady` are the keys whose values change; `schedule` calls `draw` in the next frame. */
  constructor(section, { order, unsteady, schedule }) {
    Object.assign(this, { section, order, unsteady, schedule });
    this.rows = new Map(); // by id: what the server sent, and the elements that show it
    this.dirty = new Set();
    this.needsSort = true;
    this.sortedAt = 0;
    this.hidden = 0;
    [this.body, this.filter] = [section.querySelector("tbody"), section.querySelector("input")];
    [this.count, this.empty] = [section.querySelector(".count"), section.querySelector(".empty")];
    this.emptyText = this.empty.textContent;
    this.headings = [...section.querySelectorAll("thead th[data-key]")];
    this.visible = new IntersectionObserver((entries) => this.#see(entries), { rootMargin: "200px" });
    section.querySelector("thead").addEventListener("click", ({ target }) => {
      const { key, first } = target.closest("th")?.dataset ?? {};
      if (key) this.sortBy({ key, descending: this.order.key === key ? !this.order.descending : first !== "ascending" });
    });
    this.filter.addEventListener("input", () => this.sortBy(this.order));
  }

  receive(facts) {
    let row = this.rows.get(facts.id);
    if (row === undefined) {
      row = { id: facts.id, isVisible: true, ...this.createRow(facts.id) };
      this.rows.set(facts.id, row);
      this.needsSort = true;
    }
    row.facts = facts;
    row.began = performance.now() / 1000 - facts.age;
    row.text = this.textOf(facts).toLowerCase();
    this.dirty.add(row);
    return row;
  }

  /** Removes all rows but those of some ids. */
  keep(ids) {
    for (const id of this.rows.keys()) if (!ids.has(id)) this.remove(id);
    this.needsSort = true;
  }

  remove(id) {
    const row = this.rows.get(id);
    if (row === undefined) return;
    this.visible.unobserve(row.line);
    row.line.remove();
    this.rows.delete(id);
    this.dirty.delete(row);
    this.needsSort = true;
  }

  createRow(id) {
    const line = element("tr");
    line.dataset.id = id;
    const cells = {};
    for (const heading of this.headings) cells[heading.dataset.key] = line.appendChild(element("td", heading.className));
    this.visible.observe(line);
    return { line, cells };
  }

  draw(now) {
    if (this.needsSort || (this.unsteady.includes(this.order.key) && now - this.sortedAt > RESORT)) this.#sort(now);
    for (const row of this.dirty) {
      const isNew = row.drawn !== row.facts;
      row.drawn = row.facts;
      this.drawRow(row, isNew);
      if (isNew) this.drawAge(row);
      if (row.text.includes(this.filterText) === row.line.hidden) this.needsSort = true;
    }
    this.dirty.clear();
  }

  drawAges() {
    for (const row of this.rows.values()) if (row.isVisible) this.drawAge(row);
    if (this.needsSort) this.schedule();
  }

  sortBy(order) {
    this.order = order;
    this.needsSort = true;
    this.schedule();
  }

  clearFilter() {
    this.filter.value = "";
    this.sortBy(this.order);
  }

  get filterText() {
    return this.filter.value.trim().toLowerCase();
  }

  valueOf(row, key) {
    return key === "age" ? -row.began : row.facts[key];
  }

  #see(entries) {
    for (const entry of entries) {
      const row = this.rows.get(Number(entry.target.dataset.id));
      if (row === undefined) continue;
      row.isVisible = entry.isIntersecting;
      this.dirty.add(row);
    }
    this.schedule();
  }

  #sort(now) {
    this.sortedAt = now;
    this.needsSort = false;
    const { key, descending } = this.order;
    const all = [...this.rows.values()];
    const values = new Map(all.map((row) => [row, this.valueOf(row, key)]));
    const compare = typeof values.get(all[0]) === "string"
      ? (a, b) => a.localeCompare(b, "en", { numeric: true })
      : (a, b) => a - b;
    const sign = descending ? -1 : 1;
    all.sort((one, other) => sign * compare(values.get(one), values.get(other)) || one.id - other.id);
    const text = this.filterText;
    const shown = [];
    let next = this.body.firstElementChild;
    for (const row of all) {
      row.line.hidden = !row.text.includes(text);
      if (!row.line.hidden) shown.push(row);
      if (row.line === next) next = next.nextElementSibling;
      else this.body.insertBefore(row.line, next);
    }
    for (const heading of this.headings) {
      if (heading.dataset.key === key) heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    }
    const more = this.hidden ? `, ${number(this.hidden)} more not shown` : "";
    const total = this.titleOf(all);
    write(this.count, (text ? `${number(shown.length)} of ${total}` : total) + more);
    this.empty.hidden = shown.length > 0;
    write(this.empty, text && all.length ? `Nothing matches “${this.filter.value.trim()}”.` : this.emptyText);
  }
}

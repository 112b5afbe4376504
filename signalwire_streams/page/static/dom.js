// Elements, and numbers in words. All text is set as text.

export const find = (id) => document.getElementById(id);
export const number = (value) => value.toLocaleString("en");
export const inWords = (text) => text.replaceAll("_", " ");
export const duration = (ms) => ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`;

export function element(kind, className = "", text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (value) => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

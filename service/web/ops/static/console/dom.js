/** Creates and changes elements; text is always set as text and never becomes markup. */

/** An element with attributes (`on…` is a listener) and children; null children are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

const shown = new WeakMap();

/** Run `draw` on the element only when its data has changed. */
export function whenChanged(element, value, draw) {
  const key = JSON.stringify(value);
  if (shown.get(element) === key) return;
  shown.set(element, key);
  draw(element, value);
}

/** Set text only when it differs, so that a live region announces only changes. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Rows keep their element while their item is the same, so that focus is kept. */
export function keyedRows(body, items, keyOf, draw) {
  const before = new Map([...body.children].map((row) => [row.dataset.key, row]));
  const rows = items.map((item) => {
    const key = String(keyOf(item)), known = before.get(key);
    const text = JSON.stringify(item);
    if (known && shown.get(known) === text) return known;
    const row = draw(item, known);
    row.dataset.key = key;
    shown.set(row, text);
    if (known) {
      const focused = known.contains(document.activeElement);
      known.replaceWith(row);
      if (focused) row.querySelector("button, a")?.focus();
    }
    return row;
  });
  const wanted = new Set(rows);
  for (const row of [...body.children]) if (!wanted.has(row)) row.remove();
  rows.forEach((row, place) => {
    if (body.children[place] !== row) body.insertBefore(row, body.children[place] ?? null);
  });
}

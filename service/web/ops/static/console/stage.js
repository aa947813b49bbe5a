/** The buttons' results: a card for each kind of action, the newest first. */
import { byId, h } from "./dom.js";

const stage = byId("stage");
const cards = new Map();

/** Put the card of this kind first; an existing one keeps its position. */
export function drawStage(kind, element) {
  stage.hidden = false;
  const before = cards.get(kind);
  if (before === element) return;
  before?.remove();
  cards.set(kind, element);
  stage.prepend(element);
}

/** A card with one sentence. */
export function tell(kind, title, text, tone = "soft") {
  drawStage(kind, h("article", { class: "card", "data-kind": kind, "aria-live": "polite" }, h("h3", {}, title), h("p", { "data-tone": tone, class: "sentence" }, text)));
}

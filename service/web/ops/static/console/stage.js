/** Where the buttons show what happens: a card for each kind of action, the newest first. */
import { byId, h } from "./dom.js";

const stage = byId("stage");
const cards = new Map();

/** Put the card of this kind first; one that stands there already is left where it is. */
export function drawStage(kind, element) {
  stage.hidden = false;
  const before = cards.get(kind);
  if (before === element) return;
  before?.remove();
  cards.set(kind, element);
  stage.prepend(element);
}

/** A card that says one sentence. */
export function tell(kind, title, text, tone = "soft") {
  drawStage(kind, h("article", { class: "card", "data-kind": kind, "aria-live": "polite" }, h("h3", {}, title), h("p", { "data-tone": tone, class: "sentence" }, text)));
}

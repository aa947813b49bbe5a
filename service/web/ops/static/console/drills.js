/** The catalogue of drills: the last verdict of each, its trend, and a button that runs it. */
import { call, refusal } from "./api.js";
import { byId, h, keyedRows, setText } from "./dom.js";
import { VERDICTS } from "./evidence.js";
import { duration, since } from "./format.js";
import { start } from "./rehearsal.js";
import { chip } from "./tables.js";

export async function refreshDrills(isOn) {
  const empty = byId("drills-empty");
  if (!isOn) {
    byId("drills").replaceChildren();
    return tellEmpty(empty, "Drills are off on this instance (HOLDFAST_SIMULATION_ENABLED).");
  }
  const answer = await call("GET", "/drills");
  if (!answer.ok) return tellEmpty(empty, refusal(answer));
  tellEmpty(empty, answer.body.drills.length ? "" : "No drill is in the catalogue.");
  const isBusy = Boolean(answer.body.running);
  const items = answer.body.drills.map((drill) => ({ ...drill, isBusy }));
  keyedRows(byId("drills"), items, (drill) => drill.name, draw);
}

function tellEmpty(element, text) {
  setText(element, text);
  element.hidden = !text;
}

function draw(drill) {
  const told = drill.trend.map(({ verdict }) => verdict).join(", ");
  return h("tr", {},
    h("th", { scope: "row", class: "long" }, drill.title, h("p", { class: "soft" }, drill.hypothesis)),
    h("td", {}, drill.last?.verdict ? chip(drill.last.verdict, VERDICTS[drill.last.verdict]) : h("span", { class: "soft" }, "never run")),
    h("td", {}, drill.last ? h("a", { href: `/drills/${encodeURIComponent(drill.last.id)}?format=html`, target: "_blank", rel: "noopener" }, since(drill.last.started_at)) : ""),
    h("td", {}, drill.trend.length ? h("span", { class: "dots", role: "img", "aria-label": `Trend: ${told}`, title: told },
      drill.trend.map(({ verdict }) => h("i", { "data-tone": VERDICTS[verdict] }))) : ""),
    h("td", { class: "number" }, duration(drill.takes_s)),
    h("td", {}, h("button", { type: "button", class: "quiet", "aria-disabled": drill.isBusy ? "true" : "false", "aria-label": `Run the drill ${drill.title}`,
      onclick: (event) => {
        if (event.currentTarget.getAttribute("aria-disabled") !== "true") start("/drills", { drill: drill.name, reason: "console" }, drill.title);
      } }, "Run")));
}

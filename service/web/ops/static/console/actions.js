/** The five buttons of the incident: each shows live what happens, then the evidence. */
import { NoAnswer, call, refusal } from "./api.js";
import { byId, h, setText, whenChanged } from "./dom.js";
import { UNKNOWN, money, ms } from "./format.js";
import { needKey, refuseKey } from "./key.js";
import { start } from "./rehearsal.js";
import { drawStage, tell } from "./stage.js";
import { chip, refreshPayments, timeline } from "./tables.js";

const OFF = "Simulation is off on this instance (HOLDFAST_SIMULATION_ENABLED), so no fault can be injected here.";
const BUSY = "A drill or simulation is running; start the next one after its end.";

const BUTTONS = [
  { name: "Test Payment Timeout (5000ms)", hint: "The provider accepts the request and does not answer.", path: "/simulate/payment-timeout", icon: "M12 3a9 9 0 1 0 .01 0M12 7v5l3 2" },
  { name: "Test DB Pool Exhaustion", hint: "The database stalls until no connection is free.", path: "/simulate/pool-exhaustion", icon: "M6 8c0-3 12-3 12 0s-12 3-12 0v8c0 3 12 3 12 0V8" },
  { name: "Test HTTPSConnectionPool Error", hint: "The provider cannot be reached at all.", path: "/simulate/connection-error", icon: "M12 3a9 9 0 1 0 .01 0M9 9l6 6M15 9l-6 6" },
  { name: "Check Service Health", hint: "Checks every component now.", act: checkHealth, icon: "M4 13h4l2-6 4 10 2-4h4" },
  { name: "Process a Test Payment", hint: "1.00 USD over the REST API, with your key.", act: processPayment, icon: "M4 8h16v9H4zM4 11h16" },
];
const buttons = [];

export function startActions() {
  byId("buttons").append(...BUTTONS.map((one, place) => {
    const button = h("button", { type: "button", class: "act", "aria-describedby": `hint-${place}`, "data-fault": Boolean(one.path),
      onclick: () => press(button, one) }, icon(one.icon), h("span", {}, one.name));
    buttons.push({ button, ...one });
    return h("div", { class: "action" }, button, h("p", { class: "hint", id: `hint-${place}` }, one.hint));
  }));
}

const SCOPES = { instance: "this instance", pair: "two copies" };

/** The targets of a fault here; the service's own default is selected first. */
export function offerScopes(scopes, chosen) {
  const select = byId("scope");
  whenChanged(select, scopes, () => select.replaceChildren(...scopes.map((scope) =>
    h("option", { value: scope, selected: scope === chosen }, SCOPES[scope] ?? scope))));
}

/** Whether faults can be injected now, and the reason if not. */
export function allowFaults({ isOn, running, lever }) {
  const why = !isOn ? OFF : running ? BUSY : lever?.engaged ? `Faults are blocked: ${lever.reason ?? "the kill switch is on"}.` : "";
  setText(byId("rehearsal-note"), why);
  for (const { button, path } of buttons) if (path) {
    // Not `disabled`: keyboard users must reach the button and hear the reason.
    button.setAttribute("aria-disabled", why ? "true" : "false");
    button.title = why;
  }
  for (const name of ["ttl", "scope"]) byId(name).closest("label").hidden = !isOn;
}

async function press(button, one) {
  if (button.getAttribute("aria-disabled") === "true" || button.dataset.busy === "true") return;
  button.dataset.busy = "true";
  try {
    if (one.path) await start(one.path, { ttl_s: Number(byId("ttl").value), scope: byId("scope").value || undefined, reason: "console" }, one.name);
    else if (await needKey()) await one.act(one.name);
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    tell(one.name, one.name, `The ops plane gave no answer: ${error.message}.`, "bad");
  } finally {
    button.dataset.busy = "false";
  }
}

async function checkHealth(title) {
  tell(title, title, "Checking every component; each has at most 5 s.");
  const answer = await call("GET", "/diagnostics/health?fresh=1", { waitMs: 12000 });
  if (refuseKey(answer)) return tell(title, title, "Not checked: the key was refused.", "bad");
  if (!answer.body?.checks) return tell(title, title, refusal(answer), "bad");
  const tone = { pass: "good", warn: "warn", fail: "bad" }[answer.body.status];
  drawStage(title, h("article", { class: "card", "aria-live": "polite" },
    h("div", { class: "run-head" }, h("h3", {}, title), chip(answer.body.status, tone)),
    h("ul", { class: "marks columns" }, Object.entries(answer.body.checks).map(([name, [check]]) =>
      h("li", { "data-ok": check.status === "pass" }, h("b", {}, name), ` ${check.status}, ${ms(check.latency_ms)}`, check.output ? `: ${check.output}` : "")))));
}

async function processPayment(title) {
  tell(title, title, "Sending 1.00 USD to the data plane.");
  const begun = performance.now();
  const answer = await call("POST", "/console/payments", { waitMs: 15000 });
  if (refuseKey(answer)) return tell(title, title, "Not sent: the key was refused.", "bad");
  if (!answer.ok) return tell(title, title, refusal(answer), "bad");
  drawPayment(title, answer.body, performance.now() - begun, null);
  await refreshPayments();
  const id = answer.body.answer?.id ?? answer.body.answer?.payment_id;
  if (!id) return;
  const steps = await call("GET", `/console/payments/${id}/timeline`);
  drawPayment(title, answer.body, performance.now() - begun, steps.ok ? steps.body.data : []);
}

function drawPayment(title, { status, answer, failure, ms: took, idempotency_key: idempotencyKey, request_id: request }, roundTrip, events) {
  const word = answer?.status && answer?.object === "payment" ? answer.status : answer?.code ?? "no answer";
  const rows = [
    ["Answer", status === null ? failure : `HTTP ${status} in ${ms(took)}`],
    ["Payment", answer?.id ?? answer?.payment_id ?? UNKNOWN],
    ["Amount", answer?.amount ? money(answer.amount, answer.currency) : UNKNOWN],
    ["Provider", answer?.provider_ref ?? UNKNOWN],
    ["Idempotency key", idempotencyKey],
    ["Request", request ?? UNKNOWN],
  ];
  drawStage(title, h("article", { class: "card", "aria-live": "polite" },
    h("div", { class: "run-head" }, h("h3", {}, title), chip(word)),
    answer?.detail ? h("p", {}, answer.detail) : null,
    h("dl", { class: "pairs" }, rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { class: "mono" }, value)))),
    timeline(events)));
}

function icon(path) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg"), line = document.createElementNS(ns, "path");
  for (const [name, value] of Object.entries({ viewBox: "0 0 24 24", width: 20, height: 20, "aria-hidden": "true" })) svg.setAttribute(name, value);
  for (const [name, value] of Object.entries({ d: path, fill: "none", stroke: "currentColor", "stroke-width": 2, "stroke-linecap": "round", "stroke-linejoin": "round" })) line.setAttribute(name, value);
  svg.append(line);
  return svg;
}

/** The tables of components, errors and recent payments. */
import { NoAnswer, call, key, refusal } from "./api.js";
import { byId, h, keyedRows, setText } from "./dom.js";
import { clock, count, duration, money, ms, since, words } from "./format.js";
import { refuseKey } from "./key.js";

const TONES = {
  pass: "good", warn: "warn", fail: "bad",
  succeeded: "good", requires_capture: "info", requires_action: "info", queued: "info", processing: "info",
  declined: "soft", unknown: "doubt", needs_review: "bad", not_executed: "soft", canceled: "soft", expired: "soft",
};

export const chip = (word, tone = TONES[word] ?? "soft") => h("span", { class: "chip", "data-tone": tone }, words(word));

export function showHealth(health) {
  const checks = Object.entries(health.checks).map(([name, [check]]) => ({ name, ...check, time: null }));
  keyedRows(byId("health"), checks, (check) => check.name, (check) =>
    h("tr", {},
      h("th", { scope: "row" }, check.name, check.critical ? h("span", { class: "soft", title: "Payments need it" }, " critical") : null),
      h("td", {}, chip(check.status)),
      h("td", {}, since(check.since)),
      h("td", { class: "number" }, ms(check.latency_ms)),
      h("td", {}, history(check.changes)),
      h("td", { class: "long" }, check.last_error ? [check.last_error, " ", since(check.last_error_at)] : h("span", { class: "soft" }, "none"))));
}

function history(changes) {
  const told = changes.map((change) => `${clock(change.time)} ${change.status}`).join(", ");
  return h("span", { class: "dots", role: "img", "aria-label": `History: ${told || "none"}`, title: told },
    changes.slice(-12).map((change) => h("i", { "data-tone": TONES[change.status] })));
}

/** The incident's three errors are always shown; others only after they occurred. */
export function showErrors(windows) {
  const spans = ["1m", "5m", "1h"].map((name) => categories(windows[name].errors));
  const names = Object.keys(spans[2]).filter((name) => ALWAYS.has(name) || spans.some((span) => span[name]));
  for (const span of spans.slice(0, 2)) for (const name of Object.keys(span)) if (!names.includes(name)) names.push(name);
  const items = names.map((name) => ({ name, counts: spans.map((span) => span[name] ?? 0) }));
  setText(byId("errors-note"), `counted for ${duration(windows["1h"].covers_s)}`);
  keyedRows(byId("errors"), items, (item) => item.name, ({ name, counts }) =>
    h("tr", {}, h("th", { scope: "row" }, name), counts.map((number) => h("td", { class: "number", "data-some": number > 0 }, count(number)))));
}

const TIMEOUTS = "Provider timeout (HTTPSConnectionPool)", CONNECTION = "Provider connection", POOL = "Connection pool exhausted";
const ALWAYS = new Set([TIMEOUTS, CONNECTION, POOL]);

function categories(errors) {
  const sum = (group) => Object.values(group).reduce((total, number) => total + number, 0);
  const each = (name, group) => Object.fromEntries(Object.entries(group).map(([kind, number]) => [`${name}: ${words(kind)}`, number]));
  return {
    [TIMEOUTS]: sum(errors.provider_timeouts),
    [CONNECTION]: sum(errors.provider_connection),
    [POOL]: errors.db_pool_timeouts + sum(errors.db_pool_refusals),
    ...each("Provider connection", errors.provider_connection),
    ...each("Database", errors.database),
    "Not sent: breaker open": errors.breaker_refusals,
    "Not sent: bulkhead full": errors.bulkhead_refusals,
    ...each("Refused early", errors.shed),
  };
}

const opened = new Map();

export async function refreshPayments() {
  const empty = byId("payments-empty");
  if (!key.get()) {
    byId("payments").replaceChildren();
    return tellEmpty(empty, "Enter the operator's API key to see payments.");
  }
  const answer = await call("GET", "/console/payments");
  if (refuseKey(answer)) return;
  if (!answer.ok) return tellEmpty(empty, refusal(answer));
  tellEmpty(empty, answer.body.data.length ? "" : "No payment yet. Process a test payment to see one here.");
  const items = answer.body.data.map((payment) => ({ ...payment, isOpen: opened.has(payment.id) }));
  const rows = items.flatMap((payment) => payment.isOpen ? [payment, { id: payment.id, isDetail: true, steps: opened.get(payment.id), at: payment.updated_at }] : [payment]);
  keyedRows(byId("payments"), rows, (item) => (item.isDetail ? `${item.id} detail` : item.id), drawPayment);
  for (const payment of answer.body.data) if (opened.has(payment.id) && opened.get(payment.id).at !== payment.updated_at) loadTimeline(payment);
}

function tellEmpty(element, text) {
  setText(element, text);
  element.hidden = !text;
}

function drawPayment(payment) {
  if (payment.isDetail) {
    return h("tr", { class: "detail" }, h("td", { colspan: 6, id: `steps-${payment.id}` }, timeline(payment.steps.events)));
  }
  const toggle = h("button", {
    type: "button", class: "link mono", "aria-expanded": payment.isOpen ? "true" : "false",
    "aria-controls": payment.isOpen ? `steps-${payment.id}` : null, title: payment.id,
    onclick: () => togglePayment(payment),
  }, `${payment.id.slice(0, 8)}…${payment.id.slice(-6)}`);
  return h("tr", {},
    h("th", { scope: "row" }, toggle),
    h("td", {}, chip(payment.status)),
    h("td", { class: "number" }, money(payment.amount, payment.currency)),
    h("td", { class: "long mono" }, payment.reference ?? h("span", { class: "soft" }, "none")),
    h("td", {}, since(payment.created_at)),
    h("td", {}, payment.error ? words(payment.error) : h("span", { class: "soft" }, "none")));
}

async function togglePayment(payment) {
  if (opened.has(payment.id)) opened.delete(payment.id);
  else {
    // At most a few rows stay open, so that an unattended page does not send more and more requests.
    if (opened.size >= 5) opened.delete(opened.keys().next().value);
    opened.set(payment.id, { at: null, events: null });
  }
  await refreshPayments().catch(ignoreNoAnswer);
}

async function loadTimeline(payment) {
  opened.get(payment.id).at = payment.updated_at;
  try {
    const answer = await call("GET", `/console/payments/${payment.id}/timeline`);
    if (opened.has(payment.id)) opened.set(payment.id, { at: payment.updated_at, events: answer.ok ? answer.body.data : [], problem: answer.ok ? null : refusal(answer) });
    await refreshPayments();
  } catch (error) {
    ignoreNoAnswer(error);
    if (opened.has(payment.id)) opened.get(payment.id).at = null;
  }
}

function ignoreNoAnswer(error) {
  // The next poll shows the missing answer.
  if (!(error instanceof NoAnswer)) throw error;
}

/** Every step of a payment, with the time that it waited. */
export function timeline(events) {
  if (!events) return h("p", { class: "soft" }, "Reading the timeline.");
  const first = events.length ? new Date(events[0].created_at) : 0;
  return h("ol", { class: "steps" }, events.map(({ type, detail, created_at: at }) => {
    const name = type.replace(/^payment\./, "");
    return h("li", {},
      h("span", { class: "at" }, `+${ms(new Date(at) - first)}`),
      chip(name),
      h("span", { class: "facts" }, facts(detail).map(([label, value]) => [h("span", { class: "soft" }, `${label} `), h("b", {}, value), " "])));
  }));
}

function facts(detail) {
  const known = [
    ["call", detail.op && words(detail.op)],
    ["took", detail.ms === undefined ? null : ms(detail.ms)],
    ["outcome", detail.outcome],
    ["stage", detail.stage && words(detail.stage)],
    ["error", detail.error && words(detail.error)],
    ["breaker", detail.breaker],
    ["pool wait", detail.pool_wait_ms === undefined ? null : ms(detail.pool_wait_ms)],
    ["because", detail.reason],
    ["by", detail.by],
  ];
  return known.filter(([, value]) => value !== null && value !== undefined && value !== "");
}


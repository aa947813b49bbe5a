/** The first view: whether money is safe, the amount at risk, and the remaining error budget. */
import { byId, h, setText, whenChanged } from "./dom.js";
import { UNKNOWN, count, duration, money, percent, rate, words } from "./format.js";

const ICONS = "/console/static/icon-";

export function showGlance(state) {
  const { glance } = state;
  whenChanged(byId("verdict"), glance, (verdict) => {
    verdict.dataset.state = glance.state;
    setText(byId("state"), glance.title);
    byId("reasons").replaceChildren(...reasons(glance));
    setText(byId("announce"), `${glance.title}. ${glance.reasons.map((reason) => reason.text).join(" ")}`);
    document.title = `${glance.title} · Holdfast`;
    document.querySelector("link[rel=icon]").href = `${ICONS}${glance.state}.svg`;
  });
  const wanted = tiles(state);
  whenChanged(byId("tiles"), wanted, (list) => list.replaceChildren(...wanted.map(tile)));
}

/** Without an answer the state is unknown, even if it was good before. */
export function showNotKnown() {
  const glance = { state: "not_known", title: "Not known whether money is safe", reasons: [] };
  whenChanged(byId("verdict"), glance, (verdict) => {
    verdict.dataset.state = "not_known";
    setText(byId("state"), glance.title);
    byId("reasons").replaceChildren(h("li", {}, "The ops plane does not answer. Payments may still succeed: check the data plane."));
    document.title = `No answer · Holdfast`;
    document.querySelector("link[rel=icon]").href = `${ICONS}not_known.svg`;
  });
}

function reasons(glance) {
  if (!glance.reasons.length) return [h("li", {}, "No payment in doubt, no promise broken, every component healthy.")];
  return glance.reasons.slice(0, 5).map((reason) =>
    h("li", { "data-level": reason.level }, reason.text, " ",
      h("span", { class: "runbook", title: `docs/runbooks/${reason.runbook}.md` }, reason.runbook)));
}

function tiles({ now, budgets, windows }) {
  const risk = Object.entries(now.money_at_risk_minor).filter(([, minor]) => minor > 0);
  const isCounted = now.queue.needs_review !== null;
  const [truthful, quick] = budgets;
  const minute = windows["1m"].payments;
  const { unknown, sending } = now.queue.open;
  return [
    {
      name: "Money at risk",
      value: risk.length ? risk.map(([currency, minor]) => money(minor, currency)).join(", ") : isCounted ? "none" : UNKNOWN,
      note: isCounted ? `${count(unknown)} unknown, ${count(sending)} being sent` : "not counted",
      tone: !isCounted ? "none" : unknown || now.queue.needs_review ? "doubt" : "good",
      tip: "Sum of the payments in doubt: their money may have moved.",
    },
    {
      name: "SLO budget left",
      value: truthful.left === null ? UNKNOWN : percent(truthful.left, 0),
      note: `quick answers ${quick.left === null ? UNKNOWN : percent(quick.left, 0)}, last ${duration(truthful.covers_s)}`,
      tone: truthful.left === null ? "none" : truthful.left < 0.25 ? "bad" : truthful.left < 1 || (quick.left ?? 1) <= 0 ? "warn" : "good",
      tip: "Truthful answers: 99.95 % without a 500 or a broken promise. Quick answers: 99 % within 500 ms of our own time.",
    },
    {
      name: "Payments, 1 min",
      value: rate(minute.per_s),
      note: minute.success_ratio === null ? "none yet" : `${percent(minute.success_ratio, 1)} succeeded`,
      tone: "none",
      tip: "Payments answered a second, over all workers.",
    },
    {
      name: "Circuit breaker",
      value: now.breaker ? words(now.breaker) : UNKNOWN,
      note: `${count(now.queue.queued)} queued`,
      tone: { open: "bad", half_open: "warn", closed: "good" }[now.breaker] ?? "none",
      tip: "Open: the provider is not called; payments are queued and sent later.",
    },
    {
      name: "Database pool",
      value: `${count(now.pool.in_use)} of ${count(now.pool.size)}`,
      note: now.pool.waiting ? `${count(now.pool.waiting)} waiting` : "nobody waits",
      tone: now.pool.waiting ? "bad" : "good",
      tip: "Connections checked out, over all processes.",
    },
    {
      name: "Workers",
      value: count(Object.keys(now.pool.by_worker.size).filter((name) => name.startsWith("web-")).length),
      note: `${count(Object.entries(now.threads_busy).filter(([name]) => name.startsWith("web-")).reduce((sum, [, busy]) => sum + busy, 0))} threads busy`,
      tone: "none",
      tip: "Processes of the data plane that are alive.",
    },
  ];
}

function tile({ name, value, note, tone, tip }) {
  return h("div", { class: "tile", "data-tone": tone, title: tip },
    h("dt", {}, name), h("dd", { class: "value" }, value), h("dd", { class: "note" }, note));
}

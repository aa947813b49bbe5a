/** One simulation or drill: its progress while it runs, then the evidence. */
import { Chart, line } from "./charts.js";
import { h, setText, whenChanged } from "./dom.js";
import { UNKNOWN, count, duration, money, ms, words } from "./format.js";
import { chip } from "./tables.js";

const PHASES = ["starting", "baseline", "fault", "recovery", "settling", "ended"];
export const VERDICTS = { HELD: "good", SHOWN: "good", BROKE: "bad", NOT_SHOWN: "warn", INCONCLUSIVE: "warn", ABORTED: "warn", REFUSED: "soft" };

export class RunCard {
  constructor(onStop) {
    this.head = h("div", { class: "run-head" });
    this.phases = h("ol", { class: "phases" });
    this.left = h("p", { class: "left", role: "timer" });
    this.log = h("ol", { class: "log", "aria-live": "polite", "aria-label": "What happens", tabindex: "0" });
    this.charts = h("div", { class: "run-charts" });
    this.evidence = h("div", { class: "evidence" });
    this.stop = h("button", { type: "button", class: "danger", onclick: onStop }, "Stop everything");
    this.element = h("article", { class: "card run", "data-kind": "run" }, this.head, this.phases,
      h("div", { class: "run-live" }, h("div", {}, this.left, this.log), this.charts), this.evidence);
    this.told = 0;
  }

  /** Draw the run's current state; unchanged sections keep their elements and stay open. */
  show(run) {
    const isOver = run.status === "ended";
    this.run = run;
    whenChanged(this.head, [run.id, run.verdict, run.summary, run.status], () => this.head.replaceChildren(...head(run, isOver ? null : this.stop)));
    whenChanged(this.phases, [run.phase, run.fault_began_at], () => this.phases.replaceChildren(...phases(run)));
    setText(this.left, isOver ? `Took ${duration(run.elapsed_s)}.` : run.fault_left_s > 0 ? `The fault ends automatically in ${duration(run.fault_left_s)}.` : `Running for ${duration(run.elapsed_s)}.`);
    if (run.progress.length < this.told) this.log.replaceChildren(), (this.told = 0);
    for (const step of run.progress.slice(this.told)) {
      this.log.append(h("li", {}, h("span", { class: "at" }, `+${step.at_s.toFixed(1)} s`), " ", step.text));
      this.log.scrollTop = this.log.scrollHeight;
    }
    this.told = run.progress.length;
    this.drawCharts(run.timeline);
    whenChanged(this.evidence, [run.sides, run.expectations, run.bite, run.invariants, run.preflight, run.parts], () => {
      const open = new Set([...this.evidence.querySelectorAll("details[open]")].map((one) => one.dataset.name));
      this.evidence.replaceChildren(...evidence(run));
      for (const one of this.evidence.querySelectorAll("details")) if (open.has(one.dataset.name)) one.open = true;
    });
  }

  drawCharts(timeline) {
    const names = Object.keys(timeline[0]?.sides ?? {});
    if (!names.length) return;
    if (!this.plots) {
      this.plots = names.map((name) => new Chart(this.charts, { title: names.length > 1 ? `Each second: ${name}` : "Each second", unit: count, height: 120, at: "at_s", isClock: false, series: [
        line("Answered", "answered", "good", { fill: true }), line("Queued", "queued", "info"), line("Unknown", "unknown", "doubt"),
        line("Failed", "failed", "bad"), line("Pool waiting", "pool_waiting", "warn", { dash: [4, 3] })] }));
    }
    const last = Math.max(10, timeline.at(-1).at_s);
    this.plots.forEach((plot, place) => plot.show(timeline.map((row) => ({ at_s: row.at_s, ...row.sides[names[place]] })), 0, last));
  }

  resize() {
    this.plots?.forEach((plot) => plot.resize());
  }

  end() {
    this.plots?.forEach((plot) => plot.plot.destroy());
    this.element.remove();
  }
}

function head(run, stop) {
  return [
    h("div", {}, h("h3", {}, run.title ?? run.name), h("p", { class: "soft" }, `${run.kind}, scope ${run.scope}`, run.hypothesis ? `. ${run.hypothesis}` : "")),
    run.verdict ? chip(run.verdict, VERDICTS[run.verdict]) : chip(run.status, run.status === "running" ? "warn" : "soft"),
    stop,
    run.kind === "drill" && run.status === "ended" ? h("a", { href: `/drills/${encodeURIComponent(run.id)}?format=html`, target: "_blank", rel: "noopener" }, "Report") : null,
    run.summary ? h("p", { class: "summary" }, run.summary) : null,
  ].filter(Boolean);
}

function phases(run) {
  const at = PHASES.indexOf(run.phase);
  return PHASES.slice(0, -1).map((phase, place) =>
    h("li", { "data-state": place < at ? "done" : place === at ? "now" : "next", "aria-current": place === at ? "step" : null }, phase));
}

function evidence(run) {
  const isDrill = run.kind === "drill";
  return [
    (run.preflight ?? []).some((check) => !check.ok) ? list("Preflight", run.preflight.map((check) => mark(check.ok, `${words(check.name)}: ${check.detail}`))) : null,
    isDrill && run.bite?.length ? expectations("Fault proof", run.bite) : null,
    run.expectations?.length ? expectations(isDrill ? "Promises" : "Expectations", run.expectations) : null,
    run.invariants?.length ? list("Both books", run.invariants.map((one) => mark(one.ok, `${words(one.rule)} (${one.book}): ${one.violations === null ? "not checked" : `${count(one.violations)} violations`}`))) : null,
    run.parts?.length ? list("Parts", run.parts.map((part) => h("li", {}, chip(part.verdict ?? part.status, VERDICTS[part.verdict]), ` ${part.title}`))) : null,
    ...(run.sides ?? []).map((one) => side(one, run.sides.length > 1)),
  ].filter(Boolean);
}

const mark = (isGood, text) => h("li", { "data-ok": isGood }, h("span", { class: "unseen" }, isGood ? "Yes: " : "No: "), text);
const list = (title, items) => h("section", {}, h("h4", {}, title), h("ul", { class: "marks" }, items));

function expectations(title, items) {
  return list(title, items.map((one) => {
    const bounds = [one.min === null ? null : `at least ${count(one.min)}`, one.max === null ? null : `at most ${count(one.max)}`].filter(Boolean).join(", ");
    return h("li", { "data-ok": one.ok, title: one.promql }, h("span", { class: "unseen" }, one.ok ? "Yes: " : "No: "), one.text, " ",
      h("b", {}, one.value === null ? UNKNOWN : Number(one.value.toFixed(3))), bounds ? h("span", { class: "soft" }, ` (${bounds})`) : null);
  }));
}

function side(one, hasTwo) {
  const parts = [
    one.incident ? h("pre", { class: "incident", tabindex: "0", "aria-label": "The incident's words, as logged" }, one.incident) : null,
    one.exception_chains?.length ? fold(`${one.name} chains`, `Exception chains (${one.exception_chains.length})`,
      one.exception_chains.map((chain) => h("pre", { tabindex: "0", "aria-label": "Exception chain" }, chain.map((link, depth) => `${"  ".repeat(depth)}${depth ? "caused by " : ""}${link}`).join("\n"))), true) : null,
    one.callers?.count ? callers(one.callers) : null,
    one.metrics?.length ? fold(`${one.name} metrics`, `Metrics before and after (${one.metrics.length})`, [metricsTable(one.metrics)], true) : null,
    one.payments?.length ? fold(`${one.name} payments`, paymentsTitle(one), [paymentsTable(one.payments)]) : null,
    one.log_events?.length ? fold(`${one.name} log`, `Log events (${one.log_events.length})`,
      [h("pre", { tabindex: "0", "aria-label": "Log events" }, one.log_events.map((event) => JSON.stringify(event)).join("\n"))]) : null,
  ].filter(Boolean);
  if (!parts.length) return null;
  return h("section", { class: "side" }, h("h4", {}, hasTwo ? `Evidence: ${one.name}` : "Evidence"), parts);
}

function fold(name, title, children, isOpen = false) {
  return h("details", { "data-name": name, open: isOpen }, h("summary", {}, title), children);
}

function callers({ count: total, by_status: byStatus, by_code: byCode, by_outcome: byOutcome, ms: times }) {
  const group = (label, counts) => Object.entries(counts ?? {}).map(([word, number]) => h("li", {}, h("span", { class: "soft" }, `${label} ${words(word)} `), h("b", {}, count(number))));
  return h("div", {}, h("h5", {}, `What ${count(total)} callers got`),
    h("ul", { class: "facts-list" }, group("HTTP", byStatus), group("", byOutcome), group("code", byCode),
      Object.entries(times ?? {}).map(([word, value]) => h("li", {}, h("span", { class: "soft" }, `${word} `), h("b", {}, ms(value))))));
}

function metricsTable(metrics) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Metrics before and after" }, h("table", {},
    h("thead", {}, h("tr", {}, ["Metric", "Before", "After", "Change"].map((title, place) => h("th", { scope: "col", class: place ? "number" : null }, title)))),
    h("tbody", {}, metrics.map((metric) => h("tr", {},
      h("th", { scope: "row", class: "mono" }, metric.name, h("span", { class: "soft" }, labels(metric.labels))),
      [metric.before, metric.after, metric.delta].map((value, place) => h("td", { class: "number" }, place === 2 && value > 0 ? `+${count(value)}` : count(value))))))));
}

function labels(pairs) {
  const text = Object.entries(pairs ?? {}).map(([name, value]) => `${name}="${value}"`).join(", ");
  return text ? `{${text}}` : "";
}

function paymentsTitle({ payments, payments_by_status: byStatus }) {
  const told = Object.entries(byStatus ?? {}).map(([status, number]) => `${count(number)} ${words(status)}`).join(", ");
  return `Payments (${payments.length})${told ? `: ${told}` : ""}`;
}

function paymentsTable(payments) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Payments" }, h("table", {},
    h("thead", {}, h("tr", {}, ["Payment", "Status", "Amount", "Charges at the provider"].map((title, place) => h("th", { scope: "col", class: place > 1 ? "number" : null }, title)))),
    h("tbody", {}, payments.slice(0, 100).map((payment) => h("tr", {},
      h("th", { scope: "row", class: "mono" }, payment.id), h("td", {}, chip(payment.status)),
      h("td", { class: "number" }, money(payment.amount, payment.currency)),
      h("td", { class: "number", "data-some": payment.charges > 1 }, count(payment.charges)))))));
}


/** The live charts: one uPlot each, on one shared cursor, over at most 300 rows. */
import { byId, h, setText } from "./dom.js";
import { UNKNOWN, clock, count, duration, ms, rate } from "./format.js";

const { uPlot } = window;
const ROWS_KEPT = 300;
const HEIGHT = 150;
const sync = uPlot.sync("console");
const charts = [];
let rows = [], columns = [], workers = [];
let palette = {};

const BREAKER = ["closed", "half-open", "open"];
const BREAKER_TONES = ["good", "warn", "bad"];

export function startCharts() {
  const box = byId("charts");
  readPalette();
  charts.push(
    new Chart(box, { title: "Payments by outcome", unit: rate, series: [
      line("Succeeded", "succeeded", "good", { fill: true }), line("Queued", "queued", "info"), line("Unknown", "unknown", "doubt"),
      line("Declined", "declined", "soft", { dash: [4, 3] }), line("Refused", "refused", "bad")] }),
    new Chart(box, { title: "Answer times", unit: ms, series: [
      line("p50", "p50_ms", "good"), line("p95", "p95_ms", "warn"), line("p99", "p99_ms", "bad", { dash: [4, 3] })] }),
    new Chart(box, { title: "Database pool by worker", unit: count, series: [] }),
    new Chart(box, { title: "Queue and doubt", unit: count, series: [
      line("Queued", "queued_now", "info", { fill: true }), line("In doubt", "in_doubt_now", "doubt"), line("To review", "needs_review_now", "bad")] }),
    new Chart(box, { title: "Circuit breaker", unit: (state) => BREAKER[state] ?? UNKNOWN, height: 44, wide: true, draw: drawBreaker,
      series: [line("State", "breaker", "soft", { hidden: true })] }),
  );
  let waiting = 0;
  // One observer for all charts, and one resize a frame for all changed boxes.
  new ResizeObserver(() => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => charts.forEach((chart) => chart.resize()));
  }).observe(box);
}

/** Add the newest rows; `isNew` drops the rows of an earlier process. */
export function addRows(history, isNew) {
  if (isNew) rows = [];
  columns = history.columns;
  const grown = [...new Set([...workers, ...history.workers])].sort();
  rows = rows.concat(history.rows.map((cells) => asRow(cells, history.workers))).slice(-ROWS_KEPT);
  if (grown.join() !== workers.join()) {
    workers = grown;
    charts[2].replaceSeries(workers.flatMap((name, place) => [
      line(`${name} in use`, `${name} in_use`, place % 2 ? "info" : "good"),
      line(`${name} waiting`, `${name} waiting`, place % 2 ? "warn" : "bad", { dash: [4, 3] })]));
  }
  draw();
}

export function redrawCharts() {
  readPalette();
  charts.forEach((chart) => chart.plot?.redraw(false));
}

function asRow(cells, names) {
  const row = Object.fromEntries(columns.map((name, place) => [name, cells[place]]));
  names.forEach((name, place) => {
    row[`${name} in_use`] = cells[columns.length + 2 * place];
    row[`${name} waiting`] = cells[columns.length + 2 * place + 1];
  });
  return row;
}

function draw() {
  if (!rows.length) return;
  const last = rows.at(-1).at_s, first = rows[0].at_s;
  setText(byId("span"), `over all workers, last ${duration(Math.max(120, last - first))}`);
  charts.forEach((chart) => chart.show(rows, last - Math.min(600, Math.max(120, last - first)), last));
}

export function line(name, column, tone, { dash, fill = false, hidden = false } = {}) {
  return { name, column, tone, dash, fill, hidden };
}

export class Chart {
  /** `at` names the column of the time: seconds since 1970, or since a run began (`isClock` false). */
  constructor(box, { title, unit, series, height = HEIGHT, wide = false, draw: onDraw = null, at = "at_s", isClock = true }) {
    Object.assign(this, { unit, series, height, onDraw, title, at, isClock, rows: [] });
    this.time = isClock ? (moment) => clock(moment * 1000) : (moment) => `${Math.round(moment)} s`;
    this.legend = h("ul", { class: "legend" });
    this.when = h("span", { class: "when" });
    this.canvas = h("div", { class: "canvas" });
    this.figure = h("figure", { class: `card chart${wide ? " wide" : ""}`, "aria-label": title },
      h("figcaption", {}, title, this.when), this.canvas, this.legend);
    // The space is reserved from the start, so that the first row moves no element.
    this.canvas.dataset.wide = wide;
    box.append(this.figure);
    this.build();
  }

  build() {
    this.plot?.destroy();
    this.values = this.series.map((one) => h("b", {}, UNKNOWN));
    this.legend.replaceChildren(...this.series.map((one, place) =>
      h("li", { "data-tone": one.tone, "data-dash": Boolean(one.dash) }, h("i", { "aria-hidden": "true" }), one.name, " ", this.values[place])));
    const soft = () => palette.soft, grid = () => palette.line;
    const axis = { stroke: soft, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    this.plot = new uPlot({
      width: this.width(), height: this.height,
      padding: [6, 8, 0, 0],
      legend: { show: false },
      cursor: { ...(this.isClock ? { sync: { key: sync.key, setSeries: false } } : {}), points: { size: 6 }, drag: { x: false, y: false }, y: false },
      scales: { x: { time: this.isClock, range: () => this.range ?? [0, 1] }, y: { range: (plot, low, high) => [0, Math.max(high ?? 0, 1) * 1.1] } },
      axes: [
        { ...axis, size: 22, space: 70, values: (plot, times) => times.map((time) => (this.isClock ? this.time(time).slice(0, 5) : this.time(time))), show: !this.onDraw },
        { ...axis, size: 44, space: 32, values: (plot, values) => values.map((value) => short(value, this.unit)), show: !this.onDraw },
      ],
      series: [{}, ...this.series.map((one) => ({
        stroke: () => palette[one.tone], width: 1.5, dash: one.dash, spanGaps: false,
        fill: one.fill ? () => `${palette[one.tone]}22` : undefined,
        paths: one.hidden ? () => null : undefined, points: { show: one.hidden ? false : undefined, size: 4 },
      }))],
      hooks: {
        setCursor: [(plot) => this.tell(plot.cursor.idx ?? null)],
        ...(this.onDraw ? { draw: [(plot) => this.onDraw(plot, this.rows)] } : {}),
      },
    }, [[], ...this.series.map(() => [])], this.canvas);
  }

  replaceSeries(series) {
    this.series = series;
    this.build();
  }

  show(rows, from, to) {
    this.rows = rows;
    this.range = [from, to];
    this.plot.setData([rows.map((row) => row[this.at]), ...this.series.map((one) => rows.map((row) => row[one.column] ?? null))]);
    this.tell(this.plot.cursor.idx ?? null);
  }

  /** The values under the cursor, or the newest. */
  tell(place) {
    const row = this.rows[place ?? this.rows.length - 1];
    if (!row) return;
    setText(this.when, place === null ? "" : this.time(row[this.at]));
    this.series.forEach((one, number) => setText(this.values[number], this.unit(row[one.column] ?? null)));
  }

  resize() {
    const width = this.width();
    if (width !== this.plot.width) this.plot.setSize({ width, height: this.height });
  }

  width() {
    return Math.max(200, Math.floor(this.canvas.clientWidth));
  }
}

function short(value, unit) {
  return unit === ms && value >= 1000 ? `${value / 1000} s` : unit === ms ? `${value} ms` : count(value);
}

/** A band for each reading; an opening shorter than a reading is still visible. */
function drawBreaker(plot, rows) {
  const { ctx } = plot, { left, top, width, height } = plot.bbox;
  ctx.save();
  ctx.fillStyle = palette.line;
  ctx.fillRect(left, top, width, height);
  rows.forEach((row, place) => {
    if (row.breaker === null || row.breaker === undefined) return;
    const end = Math.round(plot.valToPos(row.at_s, "x", true));
    const before = rows[place - 1]?.at_s ?? row.at_s - 2;
    const start = Math.max(left, Math.round(plot.valToPos(before, "x", true)));
    const state = row.breaker_opened > 0 ? 2 : row.breaker;
    ctx.fillStyle = palette[BREAKER_TONES[state]];
    if (end > start) ctx.fillRect(start, top, end - start, height);
  });
  ctx.restore();
}

/** Colours as numbers: a canvas cannot read the page's CSS variables. */
function readPalette() {
  const probe = h("span", { class: "unseen" });
  document.body.append(probe);
  const context = document.createElement("canvas").getContext("2d");
  for (const tone of ["good", "warn", "bad", "doubt", "info", "soft", "line"]) {
    probe.dataset.probe = tone;
    context.fillStyle = getComputedStyle(probe).color;
    palette[tone] = context.fillStyle;
  }
  probe.remove();
}

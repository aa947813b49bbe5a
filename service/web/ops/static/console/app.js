/** Polls the ops plane and passes the state to the parts of the page. */
import { allowFaults, offerScopes, startActions } from "./actions.js";
import { NoAnswer, call } from "./api.js";
import { addRows, redrawCharts, startCharts } from "./charts.js";
import { byId, h, setText } from "./dom.js";
import { refreshDrills } from "./drills.js";
import { ago, clock, refreshTimes } from "./format.js";
import { showGlance, showNotKnown } from "./glance.js";
import { startKey } from "./key.js";
import { setRehearsals, startRehearsals } from "./rehearsal.js";
import { refreshPayments, showErrors, showHealth } from "./tables.js";

const SHOWN_MS = 2000, HIDDEN_MS = 15000;
const PAYMENTS_EVERY = 3;

let boot = "", after = 0, answeredAt = 0, polls = 0, timer = 0, isPolling = false, hasRehearsals = false;

async function poll() {
  if (isPolling) return;
  isPolling = true;
  clearTimeout(timer);
  try {
    const answer = await call("GET", `/console/state?boot=${boot}&after=${after}`, { operator: null });
    if (!answer.ok) throw new NoAnswer(`it answers ${answer.status}`);
    show(answer.body);
    if (polls++ % PAYMENTS_EVERY === 0) await refreshPayments();
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    showStale(error.message);
  } finally {
    isPolling = false;
    timer = setTimeout(poll, document.hidden ? HIDDEN_MS : SHOWN_MS);
  }
}

function show(state) {
  const wasStale = !byId("stale").hidden;
  answeredAt = Date.now();
  byId("stale").hidden = true;
  document.body.dataset.stale = "false";
  addRows(state.history, boot !== state.boot);
  boot = state.boot;
  after = state.history.rows.at(-1)?.[0] ?? after;
  if (wasStale) setText(byId("announce"), "The ops plane answers again.");
  showGlance(state);
  showHealth(state.health);
  showErrors(state.windows);
  if (hasRehearsals !== state.has_rehearsals || polls === 0 || wasStale) {
    hasRehearsals = state.has_rehearsals;
    setRehearsals(hasRehearsals);
  }
  showUpdated();
}

function showStale(why) {
  const banner = byId("stale");
  document.body.dataset.stale = "true";
  const since = answeredAt ? `Everything below is as it was at ${clock(answeredAt)}.` : "No data yet.";
  const text = `The ops plane does not answer: ${why}. ${since} Trying again.`;
  if (banner.hidden) {
    banner.replaceChildren(h("span", {}, text));
    banner.hidden = false;
    setText(byId("announce"), text);
  }
  showNotKnown();
  showUpdated();
}

function showUpdated() {
  const isStale = document.body.dataset.stale === "true";
  byId("updated").dataset.live = isStale ? "no" : "yes";
  setText(byId("updated"), !answeredAt ? "No answer yet" : isStale ? `As of ${ago(answeredAt)}` : "Live");
}

function startTheme() {
  const button = byId("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    const isDark = theme ? theme === "dark" : dark.matches;
    setText(button, isDark ? "Light" : "Dark");
    button.setAttribute("aria-label", isDark ? "Use light colours" : "Use dark colours");
    redrawCharts();
  };
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
    const next = now === "dark" ? "light" : "dark";
    localStorage.setItem("holdfast.theme", next);
    apply(next);
  });
  dark.addEventListener("change", () => apply(localStorage.getItem("holdfast.theme")));
  apply(localStorage.getItem("holdfast.theme"));
}

startActions();
startCharts();
startTheme();
allowFaults({ isOn: false });
startRehearsals((rehearsal) => {
  allowFaults(rehearsal);
  if (rehearsal.scopes) offerScopes(rehearsal.scopes, rehearsal.scope);
  if (rehearsal.drillsChanged) refreshDrills(rehearsal.isOn).catch(() => {});
});
startKey(() => refreshPayments().catch(() => {}));
setInterval(() => {
  refreshTimes();
  showUpdated();
}, 1000);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) poll();
});
poll();

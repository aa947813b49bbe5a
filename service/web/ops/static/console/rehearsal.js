/** Simulations and drills: the current run, the banner, the stop button, and the progress of one. */
import { NoAnswer, call, refusal } from "./api.js";
import { byId, h, whenChanged } from "./dom.js";
import { RunCard } from "./evidence.js";
import { words } from "./format.js";
import { needKey, refuseKey } from "./key.js";
import { drawStage, tell } from "./stage.js";

const RUNNING_MS = 1000, IDLE_MS = 10000;
let isOn = false, running = null, card = null, timer = 0, isAsking = false, isFirst = true;
let told = () => {};

export function startRehearsals(onChange) {
  told = onChange;
}

/** The service reports in each state whether simulations and drills are enabled. */
export function setRehearsals(has) {
  if (has === isOn && timer) return;
  isOn = has;
  isFirst = true;
  clearTimeout(timer);
  timer = 0;
  if (has) look();
  else told({ isOn, running: null, drillsChanged: true });
}

/** Start one; resolves when it was accepted or refused. */
export async function start(path, body, title) {
  if (!(await needKey())) return;
  tell("run", title, "Starting.");
  try {
    const answer = await call("POST", path, { body });
    if (refuseKey(answer)) return tell("run", title, "Not started: the key was refused.", "bad");
    if (!answer.ok) return tell("run", title, refusal(answer), "bad");
    if (answer.body.status === "ended") return show(answer.body);
    show(answer.body);
    await look();
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    tell("run", title, `The ops plane gave no answer: ${error.message}.`, "bad");
  }
}

export async function stopEverything() {
  if (!(await needKey())) return;
  try {
    const answer = await call("DELETE", "/simulate", { waitMs: 15000 });
    if (!refuseKey(answer) && !answer.ok) tell("run", "Stop everything", refusal(answer), "bad");
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
    tell("run", "Stop everything", `No answer: ${error.message}. The fault ends automatically at its time.`, "bad");
  }
  await look();
}

async function look() {
  if (isAsking || !isOn) return;
  isAsking = true;
  clearTimeout(timer);
  try {
    const answer = await call("GET", "/simulate");
    if (answer.ok) await follow(answer.body);
    else isOn = answer.status !== 404;
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error;
  } finally {
    isAsking = false;
    timer = setTimeout(look, running || (card && card.run.status !== "ended") ? RUNNING_MS : IDLE_MS);
  }
}

async function follow(overview) {
  const before = isFirst ? undefined : running?.id ?? null;
  isFirst = false;
  running = overview.running;
  if (running) show(running);
  else if (card && card.run.status !== "ended") {
    const folder = card.run.kind === "drill" ? "/drills" : "/simulate";
    const answer = await call("GET", `${folder}/${encodeURIComponent(card.run.id)}`);
    if (answer.ok) show(answer.body);
  }
  drawBanner(overview);
  const scopes = [...new Set(overview.simulations.flatMap((one) => one.scopes))];
  told({ isOn, running, lever: overview.lever, scopes, scope: overview.default_scope, drillsChanged: before !== (running?.id ?? null) });
}

function show(run) {
  if (card && card.run && card.run.id !== run.id) {
    card.end();
    card = null;
  }
  card ??= new RunCard(stopEverything);
  drawStage("run", card.element);
  card.show(run);
  card.resize();
}

function drawBanner({ running: run, lever, links }) {
  const faults = Object.entries(links ?? {}).filter(([, link]) => link.mode);
  const shown = { run: run && [run.id, run.phase, run.title], faults: faults.map(([name, link]) => [name, link.mode]), lever: lever?.engaged && lever.reason };
  whenChanged(byId("simulation"), shown, (banner) => {
    banner.hidden = !run && !faults.length && !lever?.engaged;
    if (banner.hidden) return banner.replaceChildren();
    const what = run ? `${run.kind === "drill" ? "Drill" : "Simulation"} running: ${run.title ?? run.name} (${run.phase}, scope ${run.scope}).`
      : faults.length ? "A fault is on the links." : `Faults are blocked: ${lever.reason ?? "no reason given"}.`;
    const links = faults.map(([name, link]) => ` ${name}: ${words(link.mode)}.`).join("");
    banner.replaceChildren(h("span", {}, h("strong", {}, what), links),
      run || faults.length ? h("button", { type: "button", class: "danger", id: "stop-all", onclick: stopEverything }, "Stop everything") : null);
  });
}


/** The operator's API key: entered once, kept in this tab, dropped when it is invalid. */
import { NoAnswer, call, key, refusal } from "./api.js";
import { byId, setText } from "./dom.js";

const dialog = byId("key-dialog"), field = byId("key-field"), wrong = byId("key-error");
let waiting = [];
let told = () => {};

export function startKey(onChange) {
  told = onChange;
  byId("key-button").addEventListener("click", () => ask());
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-forget").addEventListener("click", () => {
    key.forget();
    dialog.close();
    show();
  });
  byId("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    setText(wrong, "");
    const problem = await check(field.value.trim());
    if (problem) {
      setText(wrong, problem);
      field.setAttribute("aria-invalid", "true");
      field.select();
      return;
    }
    key.set(field.value.trim());
    const resolved = waiting;
    waiting = [];
    dialog.close();
    resolved.forEach((resolve) => resolve(true));
    show();
  });
  dialog.addEventListener("close", () => {
    field.value = "";
    field.removeAttribute("aria-invalid");
    setText(wrong, "");
    waiting.forEach((resolve) => resolve(false));
    waiting = [];
  });
  show();
}

/** True with a key; false when the dialog was closed without one. */
export function needKey() {
  return key.get() ? Promise.resolve(true) : ask();
}

/** The stored key is no longer valid: show this and open the dialog. */
export function refuseKey(answer) {
  if (answer.status !== 401 && answer.status !== 403) return false;
  key.forget();
  show();
  ask();
  setText(wrong, answer.status === 403 ? "That key lacks the scope operator, or platform for actions on the instance." : "That key is no longer valid.");
  return true;
}

function ask() {
  return new Promise((resolve) => {
    waiting.push(resolve);
    byId("key-forget").hidden = !key.get();
    if (!dialog.open) dialog.showModal();
    field.focus();
  });
}

async function check(text) {
  if (!/^[\x21-\x7e]+$/.test(text)) return "That is not an API key: a key has only plain letters, without spaces.";
  try {
    const answer = await call("GET", "/console/operator", { operator: text });
    if (answer.ok) return null;
    if (answer.status === 401) return "That key is unknown, or it was revoked.";
    if (answer.status === 403) return "That key is valid, but it lacks the scope operator.";
    return refusal(answer);
  } catch (error) {
    if (error instanceof NoAnswer) return `The key could not be checked: ${error.message}.`;
    throw error;
  }
}

function show() {
  const button = byId("key-button"), has = Boolean(key.get());
  setText(button, has ? "Key set" : "Enter key");
  button.dataset.set = has;
  told(has);
}

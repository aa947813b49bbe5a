/** Calls to the ops plane. Any answer is a value; only a missing answer is an error. */

const KEY = "holdfast.operator_key";
const WAIT_MS = 5000;

export class NoAnswer extends Error {}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

/** {status, ok, body, location}; `body` is null where the answer is not JSON. Throws NoAnswer. */
export async function call(method, path, { body, waitMs = WAIT_MS, operator = key.get() } = {}) {
  const headers = { Accept: "application/json" };
  if (operator) headers.Authorization = `Bearer ${operator}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer, text;
  try {
    answer = await fetch(path, {
      method, headers, cache: "no-store", credentials: "omit",
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(waitMs),
    });
    text = await answer.text();
  } catch (error) {
    throw new NoAnswer(error.name === "TimeoutError" ? `no answer within ${waitMs / 1000} s` : "it cannot be reached");
  }
  return { status: answer.status, ok: answer.ok, body: parsed(text), location: answer.headers.get("Location") };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** The reason of a refused call, from its problem document. */
export function refusal(answer) {
  const { detail, title, reasons } = answer.body ?? {};
  const why = reasons?.length ? reasons.join(" ") : detail ?? title ?? "";
  return `Refused (${answer.status}). ${why}`.trim();
}

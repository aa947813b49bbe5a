/** Numbers, money and times for people. An unknown value is a dash, never a 0. */
import { h } from "./dom.js";

export const UNKNOWN = "–";
const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (value) => (known(value) ? plain.format(value) : UNKNOWN);
export const rate = (value) => (known(value) ? `${plain.format(value)}/s` : UNKNOWN);

export function percent(ratio, digits = 2) {
  return known(ratio) ? `${(ratio * 100).toFixed(ratio === 1 || ratio === 0 ? 0 : digits)} %` : UNKNOWN;
}

export function ms(value) {
  if (!known(value)) return UNKNOWN;
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  return value >= 100 ? `${Math.round(value)} ms` : `${Number(value.toFixed(1))} ms`;
}

/** Minor units as money, with the currency's own number of digits. */
export function money(minor, currency) {
  if (!known(minor)) return UNKNOWN;
  const format = new Intl.NumberFormat("en", { style: "currency", currency: currency.toUpperCase(), currencyDisplay: "code" });
  return format.format(minor / 10 ** format.resolvedOptions().maximumFractionDigits);
}

export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

export function ago(moment, now = Date.now()) {
  const seconds = Math.max(0, (now - new Date(moment)) / 1000);
  return seconds < 2 ? "now" : `${duration(seconds)} ago`;
}

export const clock = (moment) => new Date(moment).toLocaleTimeString("en-GB");

/** A time whose age is updated. */
export function since(moment) {
  if (!moment) return UNKNOWN;
  return h("time", { datetime: moment, title: new Date(moment).toLocaleString("en-GB"), "data-ago": true }, ago(moment));
}

/** Update all ages once a second. */
export function refreshTimes() {
  for (const element of document.querySelectorAll("time[data-ago]")) {
    const text = ago(element.dateTime);
    if (element.textContent !== text) element.textContent = text;
  }
}

export const words = (name) => name.replaceAll("_", " ");

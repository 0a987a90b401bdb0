// What the key may do, and what is left of it.

import { showCount, showMoney } from "../format.js";
import { find, make } from "./dom.js";
import { call } from "./gateway.js";

/** Asks for the figures and shows them. Throws Failure. */
export async function loadUsage() {
  const { response } = await call("/usage");
  const { key, limits, remaining, spent } = await response.json();
  const rows = [];
  const add = (name, value) => rows.push(make("div", {}, make("dt", {}, name), make("dd", { class: "num" }, value)));
  const left = (name, what, whole, show) => {
    if (what !== null && what !== undefined) add(name, whole === null || whole === undefined ? show(what) : `${show(what)} of ${show(whole)}`);
  };
  const usd = (text) => (text === null || text === undefined ? null : Number(text) * 1e10);
  left("Left today", remaining.budget_day_ticks, usd(limits.budget_day), showMoney);
  left("Left this month", remaining.budget_month_ticks, usd(limits.budget_month), showMoney);
  if (key !== "open") add("Spent today", showMoney(spent.day_ticks)); // in open mode there is no account
  left("Requests left", remaining.requests, null, showCount);
  if (limits.requests) add("Requests allowed", limits.requests);
  left("Tokens left this minute", remaining.tokens_per_minute, limits.tokens_per_minute, showCount);
  left("Streams left", remaining.streams, limits.streams, showCount);
  find("usage").replaceChildren(...rows);
  find("usage-name").textContent = key === "open" ? "Usage" : `Usage of ${key}`;
  find("usage-panel").hidden = false;
}

export function hideUsage() {
  find("usage-panel").hidden = true;
}

// Explains failures: what happened, and what to do.

import { showDuration } from "../format.js";
import { make, makeButton, makeCopyButton } from "./dom.js";

const BY_CODE = {
  network: ["The gateway did not answer", "Your network is down, or the gateway is not running. Check both, then retry."],
  connection_lost: ["The connection was lost", "The text so far is kept above. Check the network, then retry."],
  stream_cut: ["The answer was cut off", "The stream ended without its end mark, so a proxy between you and the gateway closed it. The text above is incomplete: retry."],
  unreadable: ["The answer could not be read", "The response is not from the API. A proxy between you and the gateway may have sent a page of its own."],
  insufficient_quota: ["The budget is spent", "Ask the operator of this gateway to raise it, or wait for the next day or month."],
  too_many_streams: ["Too many answers at once", "This key has reached its limit of open streams. Wait for one to end, then retry."],
  model_not_allowed: ["This key may not use this model", "Choose another model, or ask the operator of this gateway to allow it."],
  tools_not_allowed: ["This key may not use these tools", "Remove the tools in the settings, or ask the operator of this gateway to allow them."],
  key_revoked: ["This key was revoked", "Ask the operator of this gateway for another one."],
  key_expired: ["This key has expired", "Ask the operator of this gateway for a new one."],
  body_too_large: ["The request is too large", "Remove a picture, or begin a new conversation: each turn sends all earlier ones along."],
  stream_stopped: ["The operator stopped this answer", "The text so far is kept above. Ask the operator of this gateway before you try again."],
};

const BY_STATUS = {
  400: ["The request was refused", "Change what the message names, then send it again."],
  401: ["The key is missing or wrong", "Paste a key of this gateway in the settings. The gateway's operator creates keys."],
  403: ["This is not allowed", "The key is valid but may not do this. Ask the operator of this gateway."],
  404: ["Not found", "The model may have been withdrawn: choose another one."],
  413: BY_CODE.body_too_large,
  429: ["Too many requests", "Wait, then retry. The settings show the limits of this key."],
};

const BROKEN = ["The answer broke off", "The text so far is kept above. Retry; if it happens again, quote the request id."];
const SERVER = ["The service failed", "Your request is not the cause. Retry in a moment; if it happens again, quote the request id."];
const OTHER = ["The request failed", "Retry; if it happens again, quote the request id."];

/** `{title, message, advice}` of a Failure. */
export function explain(failure) {
  const { status } = failure;
  const byStatus = BY_STATUS[status] ?? (status >= 500 ? SERVER : status === 200 ? BROKEN : OTHER);
  const [title, advice] = BY_CODE[failure.code] ?? byStatus;
  const wait = failure.retryAfterS ? `Wait ${showDuration(failure.retryAfterS * 1000)}. ` : "";
  return { title, message: failure.code in BY_CODE && status === 0 ? "" : failure.message, advice: wait + advice };
}

/** The box that shows a Failure; `actions` are buttons. */
export function makeFailureBox(failure, ...actions) {
  const { title, message, advice } = explain(failure);
  const status = failure.status > 200 ? ` (${failure.status})` : "";
  return make("div", { class: "notice failure", "data-state": "bad" },
    make("p", {}, make("strong", {}, `${title}${status}.`), message ? ` ${message}` : ""),
    make("p", {}, advice),
    failure.requestId && make("p", { class: "small" }, "Request id ", make("code", {}, failure.requestId)),
    make("div", { class: "row" }, ...actions, failure.requestId && makeCopyButton("Copy the id", () => failure.requestId, { class: "button small" })));
}

export function makeRetryButton(onclick) {
  return makeButton("Retry", onclick, { class: "button small" });
}

// Failures in words: what happened, and what to do about it.

import { showDuration } from "../format.js";
import { make, makeButton, makeCopyButton } from "./dom.js";

const BY_CODE = {
  network: ["The gateway did not answer", "The network is gone, or the gateway is not running. Check both, then retry."],
  connection_lost: ["The connection was lost", "What had come is kept above; the rest is missing. Check the network, then retry."],
  stream_cut: ["The answer was cut off", "The stream ended without its end mark, so something between you and the gateway closed it. What had come may be incomplete: retry."],
  unreadable: ["The answer could not be read", "What came is not the API's. A proxy between you and the gateway may have put in a page of its own."],
  insufficient_quota: ["The budget is spent", "Ask whoever runs this gateway to raise it, or wait for the next day or month."],
  too_many_streams: ["Too many answers at once", "This key has as many streams open as it may. Wait for one to end, then retry."],
  model_not_allowed: ["This model is not for this key", "Choose another model, or ask whoever runs this gateway to allow it."],
  tools_not_allowed: ["Tools are not for this key", "Remove the tools in the settings, or ask whoever runs this gateway to allow them."],
  key_revoked: ["This key was revoked", "Ask whoever runs this gateway for another one."],
  key_expired: ["This key has expired", "Ask whoever runs this gateway for a new one."],
  body_too_large: ["The request is too large", "Remove a picture, or begin a new conversation: each turn sends all earlier ones along."],
  stream_stopped: ["The operator stopped this answer", "What had come is kept above. Ask whoever runs this gateway before you try again."],
};

const BY_STATUS = {
  400: ["The request was refused", "It does not pass as it is: change what the message names, then send it again."],
  401: ["The key is missing or wrong", "Paste a key of this gateway in the settings. Whoever runs it hands them out."],
  403: ["This is not allowed", "The key is known but may not do this. Ask whoever runs this gateway."],
  404: ["There is no such thing", "The model may have been withdrawn: choose another one."],
  413: BY_CODE.body_too_large,
  429: ["Too many requests", "Wait, then retry. The settings show the limits of this key."],
};

const BROKEN = ["The answer broke off", "What had come is kept above; the rest is missing. Retry; if it happens again, quote the request id."];
const SERVER = ["The service failed", "It is not your request. Retry in a moment; if it happens again, quote the request id."];
const OTHER = ["The request failed", "Retry; if it happens again, quote the request id."];

/** `{title, message, advice}` of a Failure. */
export function explain(failure) {
  const { status } = failure;
  const byStatus = BY_STATUS[status] ?? (status >= 500 ? SERVER : status === 200 ? BROKEN : OTHER);
  const [title, advice] = BY_CODE[failure.code] ?? byStatus;
  const wait = failure.retryAfterS ? `Wait ${showDuration(failure.retryAfterS * 1000)}. ` : "";
  return { title, message: failure.code in BY_CODE && status === 0 ? "" : failure.message, advice: wait + advice };
}

/** The box that tells of a Failure; `actions` are buttons. */
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

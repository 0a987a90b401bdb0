// Calls of the gateway. Everything that can go wrong with one comes out as a Failure.

import { readKey } from "./key.js";

export const bootstrap = JSON.parse(document.getElementById("bootstrap").textContent);

/** What went wrong. `status` is 0 when no answer came, 200 when it broke inside the answer. */
export class Failure extends Error {
  constructor(message, { status = 0, code = "", retryAfterS = null, requestId = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfterS, requestId });
  }
}

/** A request id made here, so that there is one to quote even without a response. */
function makeRequestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `play-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** The successful response to a request below `base`. Throws Failure, or AbortError if it was stopped. */
export async function call(path, { body, signal, base = bootstrap.prefix } = {}) {
  const requestId = makeRequestId();
  const headers = { Accept: "application/json, text/event-stream", "X-Request-ID": requestId };
  const key = readKey();
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const options = { method: body === undefined ? "GET" : "POST", headers, signal, credentials: "omit", cache: "no-store" };
  if (body !== undefined) options.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(base + path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("No answer came.", { code: "network", requestId });
  }
  const answered = response.headers.get("X-Request-ID") ?? requestId;
  if (!response.ok) throw await readFailure(response, answered);
  return { response, requestId: answered };
}

async function readFailure(response, requestId) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy's page, or nothing
  }
  return makeFailure(error, {
    status: response.status,
    retryAfterS: readWait(response.headers.get("Retry-After")),
    requestId,
  });
}

/** A Failure from the `error` of a response or event, which is an object, or a string if a proxy sent it. */
export function makeFailure(error, facts) {
  const message = typeof error === "string" ? error : error.message;
  return new Failure(message ?? "", { ...facts, code: error.code ?? "" });
}

function readWait(header) {
  const seconds = Number(header);
  return header !== null && Number.isFinite(seconds) ? seconds : null;
}

// One answer: sends its request and collects the events. Independent of the page.

import { call, Failure, makeFailure } from "./gateway.js";
import { readEvents } from "./sse.js";

/** Attributes: state ("waiting", "running", "complete", "stopped", "failed"), and what is known so far. */
export class Answer {
  role = "assistant";
  state = "waiting";
  text = "";
  reasoning = "";
  toolCalls = [];
  usage = null;
  finish = null;
  failure = null;
  requestId = "";
  model = "";
  served = null;
  fallback = null;
  dropped = null;
  firstAt = null;
  lastAt = null;
  thinkingMs = null;

  constructor(body, path) {
    this.body = body;
    this.path = path;
    this.model = body.model;
    this.startedAt = performance.now();
  }

  get isOver() {
    return !["waiting", "running"].includes(this.state);
  }

  /** Milliseconds since the request, until now or until it was over. */
  get elapsedMs() {
    return (this.endedAt ?? performance.now()) - this.startedAt;
  }

  get firstMs() {
    return this.firstAt === null ? null : this.firstAt - this.startedAt;
  }

  /** Tokens a second from the first one to the last; null if it cannot be computed. */
  get tokensPerS() {
    const tookMs = this.lastAt - this.firstAt;
    if (!this.usage || this.fallback || this.firstAt === null || tookMs < 1) return null;
    const thought = this.reasoning ? this.usage.completion_tokens_details?.reasoning_tokens ?? 0 : 0;
    return ((this.usage.completion_tokens ?? 0) + thought) / (tookMs / 1000);
  }

  /** Takes a message, or a piece of one. */
  take({ content, reasoning_content: reasoning, tool_calls: calls }) {
    if (!content && !reasoning && !calls?.length) return;
    const now = performance.now();
    this.firstAt ??= now;
    this.lastAt = now;
    this.state = "running";
    if (reasoning) this.reasoning += reasoning;
    if (content || calls?.length) {
      if (this.reasoning) this.thinkingMs ??= now - this.firstAt;
      this.text += content ?? "";
      for (const each of calls ?? []) this.#takeCall(each);
    }
  }

  #takeCall({ index = this.toolCalls.length, id, function: made = {} }) {
    const call = (this.toolCalls[index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    call.id = id ?? call.id;
    call.function.name += made.name ?? "";
    call.function.arguments += made.arguments ?? "";
  }

  end(state, failure = null) {
    this.state = state;
    this.failure = failure;
    this.endedAt = performance.now();
    if (this.reasoning) this.thinkingMs ??= this.endedAt - this.firstAt;
  }
}

/** Fetches `answer`. `onChange` is called whenever it has grown, `onRaw(text)` with each event as it came. */
export async function fetchAnswer(answer, signal, onChange, onRaw) {
  try {
    const { response, requestId } = await call(answer.path, { body: answer.body, signal });
    answer.requestId = requestId;
    answer.served = response.headers.get("X-Model-Served");
    answer.fallback = response.headers.get("X-Stream-Fallback");
    answer.dropped = response.headers.get("X-Params-Dropped");
    const streams = response.headers.get("Content-Type")?.startsWith("text/event-stream");
    await (streams ? readStream : readWhole)(response, answer, onChange, onRaw);
    answer.end("complete");
  } catch (error) {
    if (error.name === "AbortError") return answer.end("stopped");
    const facts = { requestId: answer.requestId, code: "connection_lost" };
    const failure = error instanceof Failure ? error : new Failure("", facts);
    answer.requestId = failure.requestId;
    answer.end("failed", failure);
  } finally {
    onChange();
  }
}

async function readStream(response, answer, onChange, onRaw) {
  for await (const { data, comment } of readEvents(response.body)) {
    onRaw(comment ?? data);
    if (comment) continue;
    if (data === "[DONE]") return;
    takeChunk(readJson(data, answer), answer);
    onChange();
  }
  throw new Failure("", { status: 200, code: "stream_cut", requestId: answer.requestId });
}

async function readWhole(response, answer, onChange, onRaw) {
  const text = await response.text();
  onRaw(text);
  takeChunk(readJson(text, answer), answer);
}

function takeChunk(chunk, answer) {
  if (chunk.error) throw makeFailure(chunk.error, { status: 200, requestId: answer.requestId });
  if (chunk.usage) answer.usage = chunk.usage;
  if (chunk.model) answer.model = chunk.model;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  answer.finish = choice.finish_reason || answer.finish;
  answer.take(choice.delta ?? choice.message ?? {});
}

function readJson(text, answer) {
  try {
    return Object(JSON.parse(text));
  } catch {
    throw new Failure(`“${text.slice(0, 200)}”`, { status: 200, code: "unreadable", requestId: answer.requestId });
  }
}

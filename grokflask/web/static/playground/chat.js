// The conversation: its turns, the answer that is coming, and what can be done with the last ones.

import { Answer, fetchAnswer } from "./answer.js";
import { announce, find } from "./dom.js";
import { attach } from "./pictures.js";
import { readOptions, readSystemPrompt, SettingError } from "./settings.js";
import { AnswerTurn, UserTurn } from "./turns.js";

const PATH = "/chat/completions";

/** Turns are `{message, view}` with `message` an Answer, `{role: "user", text, pictures}`, or a tool's result. */
export class Chat {
  #turns = [];
  #running = null;

  constructor(pane, events, onDone) {
    this.pane = pane;
    this.events = events;
    this.onDone = onDone;
  }

  get isRunning() {
    return this.#running !== null;
  }

  /** Sends a message with the settings as they are. Throws SettingError, and then nothing has changed. */
  send(text, pictures) {
    const options = readOptions();
    const message = { role: "user", text, pictures };
    const view = new UserTurn(message, () => this.#edit());
    this.#add({ message, view });
    this.#answer(options);
  }

  /** Aborts the request; the text so far stays. */
  stop() {
    this.#running?.abort();
  }

  /** Begins anew. */
  clear() {
    this.stop();
    this.#running = null;
    this.#showRunning();
    this.#turns = [];
    find("turn-list").replaceChildren();
    find("welcome").hidden = false;
    announce("New conversation.");
  }

  /** Moves the last message back into the message field. */
  #edit() {
    if (this.isRunning) return;
    const at = this.#turns.findLastIndex(({ message }) => message.role === "user");
    const { text, pictures } = this.#turns[at].message;
    this.#cut(at);
    find("welcome").hidden = this.#turns.length > 0;
    find("message").value = text;
    find("message").dispatchEvent(new Event("input"));
    find("message").focus();
    attach(pictures);
  }

  /** Discards the last answer and requests it again. */
  #again() {
    const options = this.#readOptions();
    if (!options) return;
    this.#cut(this.#turns.length - 1);
    this.#answer(options);
  }

  #sendResults(results) {
    const options = this.#readOptions();
    if (!options) return;
    this.#turns.push(...results.map((message) => ({ message })));
    this.#answer(options);
  }

  /** The settings; null while an answer is running, or if a setting is invalid. */
  #readOptions() {
    try {
      return this.isRunning ? null : readOptions();
    } catch (error) {
      if (error instanceof SettingError) return null; // the error is shown beside the field
      throw error;
    }
  }

  #cut(at) {
    for (const { view } of this.#turns.splice(at)) view?.element.remove();
  }

  #add(turn) {
    this.#turns.push(turn);
    find("turn-list").append(turn.view.element);
    find("welcome").hidden = true;
    this.pane.toEnd();
    this.#allowChanges();
  }

  async #answer(options) {
    const body = {
      model: find("model").value,
      messages: this.#listMessages(),
      stream: true,
      stream_options: { include_usage: true },
      ...options,
    };
    const answer = new Answer(body, PATH);
    const view = new AnswerTurn(answer, {
      onAgain: () => this.#again(),
      onLayout: () => this.pane.follow(),
      onResults: (results) => this.#sendResults(results),
    });
    const running = new AbortController();
    this.#running = running;
    this.#add({ message: answer, view });
    this.#showRunning();
    this.events.start(`Chat, ${body.model}`);
    await fetchAnswer(answer, running.signal, () => view.update(), (text) => this.events.add(text));
    if (this.#running === running) this.#running = null; // else another one has begun
    this.#showRunning();
    const finished = view.finish();
    this.#allowChanges();
    announce({ complete: "Answer complete.", stopped: "Answer stopped.", failed: "The answer failed." }[answer.state]);
    this.onDone(answer);
    await finished;
  }

  /** The messages to send: the system prompt and all turns except empty answers. */
  #listMessages() {
    const system = readSystemPrompt();
    const said = this.#turns.map(({ message }) => message).flatMap((message, index, all) => toMessages(message, all[index + 1]));
    return system ? [{ role: "system", content: system }, ...said] : said;
  }

  #allowChanges() {
    const last = this.#turns.findLastIndex(({ message }) => message.role === "user");
    for (const [index, { view }] of this.#turns.entries()) {
      view?.allowChanges(!this.isRunning && (view instanceof UserTurn ? index === last : index === this.#turns.length - 1));
    }
  }

  /** Shows Send or Stop in the same place, and keeps the focus on the visible one. */
  #showRunning() {
    const [shown, hidden] = this.isRunning ? [find("stop"), find("send")] : [find("send"), find("stop")];
    const moves = document.activeElement === hidden || document.activeElement === document.body;
    shown.hidden = false;
    hidden.hidden = true;
    if (moves) shown.focus({ preventScroll: true });
  }
}

function toMessages(message, next) {
  if (message.role === "tool") return [message];
  if (message.role === "user") {
    if (!message.pictures.length) return [{ role: "user", content: message.text }];
    const parts = message.pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
    return [{ role: "user", content: [...parts, { type: "text", text: message.text }] }];
  }
  // A call without its result would be refused.
  if (message.toolCalls.length && next?.role === "tool") {
    return [{ role: "assistant", content: message.text, tool_calls: message.toolCalls }];
  }
  return message.text ? [{ role: "assistant", content: message.text }] : [];
}

// How turns look: the user's messages, and answers while they stream and when they are complete.

import { showDuration } from "../format.js";
import { make, makeButton, makeCopyButton } from "./dom.js";
import { makeFacts, makeNotices } from "./facts.js";
import { makeFailureBox, makeRetryButton } from "./failures.js";
import { MarkdownView } from "./markdown.js";
import { openSnippets } from "./snippets.js";

/** A message of the user's. `onEdit` is called when it is to be changed. */
export class UserTurn {
  constructor({ text, pictures }, onEdit) {
    this.edit = makeButton("Edit", onEdit);
    this.element = make("li", { class: "turn user" },
      make("h2", { class: "who" }, "You"),
      pictures.length ? make("ul", { class: "thumbs" }, pictures.map((each) => make("li", {}, make("img", { src: each.url, alt: each.name })))) : null,
      make("div", { class: "said" }, text),
      make("div", { class: "facts" }, make("div", { class: "acts" }, this.edit)));
  }

  /** Only the last one can be changed. */
  allowChanges(allowed) {
    this.edit.hidden = !allowed;
  }
}

/** An answer. Text goes into the page once a frame, however many events came in it. */
export class AnswerTurn {
  #frame = 0;
  #thoughts = document.createTextNode("");

  constructor(answer, { onAgain, onLayout, onResults }) {
    this.answer = answer;
    this.onLayout = onLayout;
    this.onResults = onResults;
    this.markdown = new MarkdownView(onLayout);
    this.again = makeButton("Regenerate", onAgain);
    this.onAgain = onAgain;
    this.model = make("span", { class: "soft small" }, answer.model);
    this.summary = make("summary", {}, "Reasoning …");
    this.reasoning = make("details", { class: "reasoning", hidden: true }, this.summary, make("div", { class: "thoughts" }, this.#thoughts));
    this.waiting = make("div", { class: "waiting" }, make("span", { class: "skeleton" }, "waiting for the first token"));
    this.end = make("div", { class: "turn-end" });
    this.element = make("li", { class: "turn answer", "data-state": answer.state },
      make("h2", { class: "who" }, "Grok ", this.model), this.reasoning, this.waiting, this.markdown.element, this.end);
  }

  /** The answer has grown. */
  update() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #draw() {
    const { answer } = this;
    this.element.dataset.state = answer.state;
    this.waiting.hidden = answer.state !== "waiting";
    this.model.textContent = answer.model;
    if (answer.reasoning) {
      this.reasoning.hidden = false;
      this.#thoughts.appendData(answer.reasoning.slice(this.#thoughts.length));
      this.summary.textContent = answer.thinkingMs === null ? "Reasoning …" : `Reasoning (${showDuration(answer.thinkingMs)})`;
    }
    this.markdown.grow(answer.text);
    this.onLayout();
  }

  /** The answer has ended: draws the rest, renders the whole text and shows its figures. */
  async finish() {
    cancelAnimationFrame(this.#frame);
    this.#draw();
    const { answer } = this;
    const parts = [...answer.toolCalls.map(showCall), ...makeNotices(answer)];
    if (answer.toolCalls.length && answer.state === "complete") parts.push(this.#makeResults());
    if (answer.failure) parts.push(makeFailureBox(answer.failure, makeRetryButton(this.onAgain)));
    parts.push(make("div", { class: "facts" }, makeFacts(answer), make("div", { class: "acts" },
      answer.text && makeCopyButton("Copy", () => answer.text, { "aria-label": "Copy the answer" }),
      makeButton("As code", () => openSnippets(answer.path, answer.body), { "aria-label": "This turn as code" }), this.again)));
    this.end.replaceChildren(...parts);
    this.onLayout();
    await this.markdown.finish();
  }

  /** Only the last one can be made again. */
  allowChanges(allowed) {
    this.again.hidden = !allowed;
    for (const each of this.end.querySelectorAll(".failure button:first-child, .results button")) each.hidden = !allowed;
  }

  /** A field for the result of each call: the person runs the tools. */
  #makeResults() {
    const fields = this.answer.toolCalls.map((call) => {
      const field = make("textarea", { rows: "2", id: `result-${call.id}` });
      return [call.id, field, make("div", { class: "field" }, make("label", { for: field.id }, `Result of ${call.function.name}`), field)];
    });
    const send = () => this.onResults(fields.map(([id, field]) => ({ role: "tool", tool_call_id: id, content: field.value })));
    return make("div", { class: "results stack" }, fields.map((each) => each[2]),
      make("div", { class: "row" }, makeButton("Send the results", send, { class: "button small" })));
  }
}

function showCall({ function: { name, arguments: given } }) {
  return make("div", { class: "code-block" },
    make("div", { class: "code-head" }, make("span", {}, `tool call: ${name}`), makeCopyButton("Copy", () => given, { "aria-label": "Copy the arguments" })),
    make("pre", { tabindex: "0", role: "group", "aria-label": `Arguments of ${name}` }, make("code", {}, given)));
}

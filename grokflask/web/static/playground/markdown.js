// An answer's Markdown. It grows as plain text, token by token; what is complete is rendered by the server,
// which sanitises it. Only what comes from there is ever taken in as HTML.

import { make, makeCopyButton } from "./dom.js";
import { call } from "./gateway.js";

const MAX_BYTES = 250_000; // the server takes 256 KiB, as JSON

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const LIST = /^([-*+]|\d{1,9}[.)])(\s|$)/;

/** How much of `text` may be rendered while more is coming: up to the last blank line outside a fence or list. */
export function findCut(text) {
  let cut = 0;
  let fence = "";
  let inList = false;
  let blank = false;
  let at = 0;
  for (;;) {
    const end = text.indexOf("\n", at);
    const line = end < 0 ? text.slice(at) : text.slice(at, end);
    const mark = FENCE.exec(line.trimStart())?.[1] ?? "";
    if (fence) {
      if (mark.startsWith(fence) && line.trim() === mark) fence = "";
      blank = false;
    } else if (line.trim() === "") {
      blank = true;
    } else {
      const listed = LIST.test(line);
      if (blank && !/^\s/.test(line) && !(inList && (listed || end < 0))) {
        cut = at;
        inList = false;
      }
      inList ||= listed;
      blank = false;
      fence = mark;
    }
    if (end < 0) return cut;
    at = end + 1;
  }
}

/** HTML of `text`, as elements. Throws Failure. */
async function render(text) {
  const { response } = await call("/playground/render", { body: { text }, base: "" });
  const holder = document.createElement("template");
  holder.innerHTML = (await response.json()).html; // sanitised by the server, see web/markdown.py
  for (const block of holder.content.querySelectorAll("pre")) dress(block);
  for (const table of holder.content.querySelectorAll("table")) {
    const frame = make("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return holder.content;
}

/** Gives a block of code its language's name and a button that copies it. */
function dress(block) {
  const code = block.querySelector("code") ?? block;
  const language = code.className.replace("language-", "");
  const frame = make("div", { class: "code-block" },
    make("div", { class: "code-head" }, make("span", {}, language || "text"),
      makeCopyButton("Copy", () => code.textContent, { "aria-label": "Copy the code" })));
  block.replaceWith(frame);
  block.tabIndex = 0;
  block.setAttribute("role", "group");
  block.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  frame.append(block);
}

/** A text that grows. `element` is what to put into the page; `onLayout` is called when its height may have changed. */
export class MarkdownView {
  #text = "";
  #done = 0; // characters that are rendered
  #busy = null;
  #broken = false;
  #rendered = make("div", { class: "markdown" });
  #tail = document.createTextNode("");
  #tailElement = make("div", { class: "tail" }, this.#tail);

  constructor(onLayout) {
    this.onLayout = onLayout;
    this.element = make("div", { class: "text" }, this.#rendered, this.#tailElement);
  }

  /** The text so far. */
  grow(text) {
    if (text.length === this.#text.length) return;
    const more = text.slice(this.#text.length);
    this.#text = text;
    this.#tail.appendData(more);
    if (!this.#busy && !this.#broken && more.includes("\n")) this.#busy = this.#renderMore();
  }

  async #renderMore() {
    const cut = this.#done + findCut(this.#text.slice(this.#done));
    try {
      if (cut > this.#done) {
        const content = await render(this.#text.slice(this.#done, cut));
        this.#rendered.append(content);
        this.#done = cut;
        this.#tail.data = this.#text.slice(cut);
        this.onLayout();
      }
    } catch {
      this.#broken = true; // the plain text stays
    }
    this.#busy = null;
  }

  /** The text is complete: renders it as a whole, because pieces may refer to each other. */
  async finish() {
    await this.#busy;
    if (!this.#text || new Blob([this.#text]).size > MAX_BYTES) return;
    try {
      const content = await render(this.#text);
      this.#rendered.replaceChildren(content);
      this.#done = this.#text.length;
      this.#tail.data = "";
      this.onLayout();
    } catch {
      // the plain text stays
    }
  }
}

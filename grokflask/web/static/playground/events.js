// The tab of raw events: each as it came, with its time since the request. The last ones of one request only.

import { showCount } from "../format.js";
import { find, make, makeCopyButton } from "./dom.js";

const MAX_EVENTS = 1000;
const MAX_CHARS = 2000;

export class EventLog {
  #events = [];
  #count = 0;
  #drawn = 0; // how many of all that came have been drawn
  #frame = 0;
  #title = "";
  #startedAt = 0;

  constructor() {
    find("event-tools").append(makeCopyButton("Copy all", () => this.#events.map(({ atMs, text }) => `${atMs} ms\t${text}`).join("\n"), { class: "button small" }));
  }

  /** Starts the list of a new request, and clears that of the last one. */
  start(title) {
    this.#title = title;
    this.#startedAt = performance.now();
    this.#events = [];
    this.#count = this.#drawn = 0;
    find("event-list").replaceChildren();
    this.update();
  }

  add(text) {
    const shown = text.length > MAX_CHARS ? `${text.slice(0, MAX_CHARS)} … and ${showCount(text.length - MAX_CHARS)} more characters` : text;
    this.#events.push({ atMs: Math.round(performance.now() - this.#startedAt), text: shown });
    this.#count += 1;
    if (this.#events.length > MAX_EVENTS) this.#events.shift();
    this.update();
  }

  /** Draws new events, once per frame, and only while the tab is shown. */
  update() {
    if (find("panel-events").hidden) return;
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #draw() {
    const list = find("event-list");
    const fresh = Math.min(this.#count - this.#drawn, this.#events.length);
    list.append(...this.#events.slice(this.#events.length - fresh).map(({ atMs, text }) =>
      make("li", {}, make("span", { class: "figure soft" }, `${showCount(atMs)} ms`), make("code", {}, text))));
    this.#drawn = this.#count;
    while (list.childElementCount > MAX_EVENTS) list.firstElementChild.remove();
    const gone = this.#count - this.#events.length;
    find("event-title").textContent = this.#title ? `${this.#title}: ${showCount(this.#count)} events${gone ? `, the first ${showCount(gone)} are no longer kept` : ""}` : "";
    find("event-tools").hidden = list.hidden = !this.#count;
    find("event-empty").hidden = this.#count > 0;
  }
}

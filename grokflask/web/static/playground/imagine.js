// The tab of images that a model makes.

import { showDuration, showMoney } from "../format.js";
import { announce, find, make, makeButton } from "./dom.js";
import { call } from "./gateway.js";
import { makeFailureBox, makeRetryButton } from "./failures.js";
import { lacksKey, openSettings } from "./settings.js";
import { openSnippets } from "./snippets.js";

const PATH = "/images/generations";
let running = null;

/** Sets the tab up; `onDone` is called after each request. */
export function setUpImagine(events, onDone) {
  find("imagine").addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = find("image-prompt").value.trim();
    if (!prompt || running) return;
    if (lacksKey()) return openSettings(find("key"));
    // As base64 always: this page shows no picture from another host.
    const body = { model: find("image-model").value, prompt, n: Number(find("image-count").value), response_format: "b64_json" };
    if (find("image-ratio").value) body.aspect_ratio = find("image-ratio").value;
    makeImages(body, events, onDone);
  });
  find("image-stop").addEventListener("click", () => running?.abort());
}

async function makeImages(body, events, onDone) {
  running = new AbortController();
  const startedAt = performance.now();
  const item = make("li", { class: "made" },
    make("h2", {}, body.prompt),
    make("div", { class: "gallery" }, Array.from({ length: body.n }, () => make("div", { class: "skeleton picture" }))));
  find("image-empty").hidden = true;
  find("made").prepend(item);
  showRunning(true);
  events.start(`Images, ${body.model}`);
  try {
    const { response } = await call(PATH, { body, signal: running.signal });
    const text = await response.text();
    events.add(text);
    const { data, usage } = JSON.parse(text);
    const cost = usage?.cost_in_usd_ticks;
    item.lastElementChild.replaceChildren(...data.map((each, index) => showImage(each.b64_json, body.prompt, index)));
    item.append(make("div", { class: "facts" }, make("span", { class: "figure" }, body.model),
      make("span", { class: "figure" }, showDuration(performance.now() - startedAt)),
      cost === undefined ? null : make("span", { class: "figure", title: `${cost} ticks` }, showMoney(cost)),
      make("div", { class: "acts" }, makeButton("As code", () => openSnippets(PATH, body), { "aria-label": "This turn as code" }))));
    announce(`Images made: ${data.length}.`);
  } catch (error) {
    const again = makeRetryButton(() => {
      item.remove();
      makeImages(body, events, onDone);
    });
    item.lastElementChild.replaceWith(error.name === "AbortError"
      ? make("p", { class: "notice small", "data-state": "warn" }, "Stopped. xAI may charge for an image that it has begun.")
      : makeFailureBox(error, again));
    announce("No image was made.");
  } finally {
    running = null;
    showRunning(false);
    onDone();
  }
}

function showImage(base64, prompt, index) {
  const type = base64.startsWith("/9j/") ? "jpeg" : "png";
  const url = `data:image/${type};base64,${base64}`;
  return make("figure", {},
    make("img", { src: url, alt: `${prompt} (image ${index + 1})` }),
    make("figcaption", {}, make("a", { class: "button small", href: url, download: `image-${index + 1}.${type === "jpeg" ? "jpg" : "png"}` }, "Download")));
}

function showRunning(is) {
  find("image-send").hidden = is;
  find("image-stop").hidden = !is;
}

// Which models there are to choose from, and what is known of them.

import { find, make } from "./dom.js";
import { bootstrap, call } from "./gateway.js";

const OTHER_KINDS = /imagin|image|video|embed|voice|tts/;

/** The reasoning efforts that a model accepts; none if it rejects the parameter. */
export function listEfforts(model) {
  if (/^grok-3-mini/.test(model)) return ["low", "high"];
  if (/^grok-4\.3/.test(model)) return ["none", "low", "medium", "high"];
  if (/^grok-4\.5/.test(model)) return ["low", "medium", "high"];
  if (/^grok-4\.[6-9](?!\d)/.test(model)) return ["low", "medium", "high", "xhigh"];
  return [];
}

/** Fills a list; what was chosen stays chosen. */
function fill(select, names, preferred) {
  const chosen = select.value || preferred;
  const all = names.includes(chosen) || !chosen ? names : [chosen, ...names];
  select.replaceChildren(...all.map((name) => make("option", { value: name }, name)));
  select.value = chosen;
  select.dispatchEvent(new Event("change"));
}

/** Fills the lists before the models are loaded: with the defaults, or the model in the URL (`?model=…`). */
export function fillModels() {
  fill(find("model"), [], new URLSearchParams(location.search).get("model") ?? bootstrap.chatModel);
  fill(find("image-model"), [], bootstrap.imageModel);
}

/** Asks the gateway for its models. Throws Failure. */
export async function loadModels() {
  const { response } = await call("/models");
  const names = (await response.json()).data.map((each) => each.id);
  fill(find("model"), names.filter((name) => !OTHER_KINDS.test(name)), bootstrap.chatModel);
  fill(find("image-model"), names.filter((name) => /imagin|image/.test(name) && !/video/.test(name)), bootstrap.imageModel);
}

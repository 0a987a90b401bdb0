// The settings: the key, and options sent with each message. Beside the chat, or in a sheet on narrow screens.

import { announce, find, make } from "./dom.js";
import { bootstrap } from "./gateway.js";
import { keepKey, maskKey, readKey } from "./key.js";
import { listEfforts } from "./models.js";

const NAME = "grokflask-settings";
const FIELDS = ["system", "temperature", "max-tokens", "tools"];
const WIDE = window.matchMedia("(min-width: 960px)");

const KEY_HINTS = {
  open: "This gateway needs no key.",
  keys: "A key of this gateway. It is kept in this tab until you close it, and sent to this gateway only.",
  passthrough: "Your own xAI key. It is kept in this tab until you close it, and sent to this gateway, which passes it to xAI.",
};

/** Whether calls need a key, and none is set. */
export const lacksKey = () => bootstrap.auth !== "open" && !readKey();

/** A setting that cannot be sent. */
export class SettingError extends Error {}

/** The request's fields of these settings, beside its messages. Throws SettingError, after having gone to the field. */
export function readOptions() {
  try {
    return checkOptions();
  } catch (error) {
    openSettings(error.field);
    announce(error.message);
    throw error;
  }
}

function checkOptions() {
  const options = {};
  const temperature = readNumber("temperature", 0, 2);
  const maxTokens = readNumber("max-tokens", 1, 1e7);
  if (temperature !== null) options.temperature = temperature;
  if (maxTokens !== null) options.max_tokens = Math.round(maxTokens);
  if (find("effort").value && !find("effort-field").hidden) options.reasoning_effort = find("effort").value;
  const tools = checkTools();
  if (tools.length) options.tools = tools;
  return options;
}

export const readSystemPrompt = () => find("system").value.trim();

function readNumber(id, min, max) {
  const field = find(id);
  const value = field.value.trim() === "" ? null : Number(field.value);
  const good = field.validity.valid && (value === null || (value >= min && value <= max));
  tellProblem(id, good ? "" : `Enter a number from ${min} to ${max}, or leave this empty.`);
  return value;
}

/** The tools, if they are what a request may have. Throws SettingError. */
function checkTools() {
  const text = find("tools").value.trim();
  let problem = "";
  let tools = [];
  if (text) {
    try {
      tools = JSON.parse(text);
      problem = findToolProblem(tools);
    } catch (error) {
      problem = `This is not valid JSON: ${error.message}`;
    }
  }
  tellProblem("tools", problem);
  return tools;
}

function findToolProblem(tools) {
  if (!Array.isArray(tools)) return "Enter a list of tools, in [ ].";
  for (const [index, tool] of tools.entries()) {
    const place = `Tool ${index + 1}`;
    if (typeof tool?.type !== "string") return `${place} has no "type".`;
    if (tool.type === "function" && typeof tool.function?.name !== "string") return `${place} has no "function" with a "name".`;
  }
  return "";
}

/** Shows what is wrong with a field, or that nothing is. Throws SettingError if something is. */
function tellProblem(id, problem) {
  const field = find(id);
  const place = find(`${id}-problem`);
  place.textContent = problem;
  place.hidden = !problem;
  if (!problem) return field.removeAttribute("aria-invalid");
  field.setAttribute("aria-invalid", "true");
  const folded = field.closest("details");
  if (folded) folded.open = true;
  throw Object.assign(new SettingError(problem), { field });
}

/** Shows the settings, where they are in a sheet, and goes to a field. */
export function openSettings(field) {
  if (!WIDE.matches && !find("sheet").open) find("sheet").showModal();
  field?.focus();
}

/** Shows the key as it is kept, or the field for one. */
function showKey() {
  const key = readKey();
  find("key-hint").textContent = KEY_HINTS[bootstrap.auth];
  find("key-field").hidden = bootstrap.auth === "open";
  find("key-entry").hidden = Boolean(key);
  find("key-kept").hidden = !key;
  find("key-mask").textContent = maskKey(key);
  find("need-key").hidden = !lacksKey();
}

function takeKey(onKey) {
  const key = find("key").value.trim().replace(/^Bearer\s+/i, "");
  find("key").value = "";
  if (!key) return;
  keepKey(key);
  showKey();
  announce("Key kept in this tab.");
  find("key-forget").focus();
  onKey();
}

function showEfforts() {
  const efforts = listEfforts(find("model").value);
  const chosen = find("effort").value;
  find("effort-field").hidden = !efforts.length;
  find("effort").replaceChildren(make("option", { value: "" }, "the model's default"), ...efforts.map((each) => make("option", { value: each }, each)));
  find("effort").value = efforts.includes(chosen) ? chosen : "";
}

function place() {
  if (WIDE.matches) find("sheet").close();
  find(WIDE.matches ? "side" : "sheet-body").append(find("settings"));
}

/** Sets all of it up; `onKey` is called when there is another key. */
export function setUpSettings(onKey) {
  place();
  WIDE.addEventListener("change", place);
  find("open-settings").addEventListener("click", () => openSettings());
  find("enter-key").addEventListener("click", () => openSettings(find("key")));
  find("close-settings").addEventListener("click", () => find("sheet").close());
  find("settings").addEventListener("submit", (event) => event.preventDefault());
  find("key").addEventListener("change", () => takeKey(onKey));
  find("key").addEventListener("paste", () => setTimeout(() => takeKey(onKey)));
  find("key-forget").addEventListener("click", () => {
    keepKey("");
    showKey();
    find("key").focus();
    onKey();
  });
  find("model").addEventListener("change", showEfforts);
  for (const id of ["temperature", "max-tokens", "tools"]) find(id).addEventListener("change", () => {
    try {
      checkOptions();
    } catch {
      // the error is shown beside the field
    }
  });
  remember();
  showKey();
}

/** Keeps the settings in this tab when the page is reloaded. */
function remember() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(NAME) ?? "{}");
    for (const id of FIELDS) find(id).value = kept[id] ?? "";
    find("settings").addEventListener("change", () => sessionStorage.setItem(NAME, JSON.stringify(Object.fromEntries(FIELDS.map((id) => [id, find(id).value])))));
  } catch {
    // storage is forbidden
  }
}

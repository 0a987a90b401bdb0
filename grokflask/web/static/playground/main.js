// The playground: puts its parts together and listens to the keyboard.

import { Chat } from "./chat.js";
import { find, makeCopyButton } from "./dom.js";
import { EventLog } from "./events.js";
import { makeFailureBox, makeRetryButton } from "./failures.js";
import { setUpImagine } from "./imagine.js";
import { fillModels, loadModels } from "./models.js";
import { Pane } from "./pane.js";
import { attach, listenForPictures, readPictures } from "./pictures.js";
import { lacksKey, openSettings, SettingError, setUpSettings } from "./settings.js";
import { readSnippet } from "./snippets.js";
import { setUpTabs } from "./tabs.js";
import { hideUsage, loadUsage } from "./usage.js";

const events = new EventLog();
const chat = new Chat(new Pane(), events, refreshUsage);
const field = find("message");

/** Figures of the key; a failure to load them is not shown. */
async function refreshUsage() {
  if (lacksKey()) return hideUsage();
  try {
    await loadUsage();
  } catch {
    hideUsage();
  }
}

/** What depends on the key: its models and its figures. */
async function load() {
  refreshUsage();
  find("load-problem").replaceChildren();
  if (lacksKey()) return;
  try {
    await loadModels();
  } catch (error) {
    find("load-problem").replaceChildren(makeFailureBox(error, makeRetryButton(load)));
  }
}

function send() {
  const text = field.value.trim();
  const pictures = readPictures();
  if (chat.isRunning || (!text && !pictures.length)) return;
  if (lacksKey()) return openSettings(find("key"));
  try {
    chat.send(text, pictures);
  } catch (error) {
    if (error instanceof SettingError) return; // the error is shown beside the field
    throw error;
  }
  field.value = "";
  attach([]);
  fit();
}

/** The field is as high as its text, within bounds. */
function fit() {
  field.rows = Math.min(8, field.value.split("\n").length);
}

function listen() {
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  field.addEventListener("input", fit);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && chat.isRunning && !document.querySelector("dialog[open]")) chat.stop();
  });
  find("stop").addEventListener("click", () => {
    chat.stop();
    field.focus();
  });
  find("new").addEventListener("click", () => {
    chat.clear();
    find("tab-chat").click();
    field.focus();
  });
  for (const each of document.querySelectorAll("[data-suggestion]")) {
    each.addEventListener("click", () => {
      field.value = each.textContent.trim();
      field.focus();
      send();
    });
  }
  find("close-snippets").addEventListener("click", () => find("snippets").close());
  for (const name of ["curl", "python"]) find(`snippet-${name}-head`).append(makeCopyButton("Copy", () => readSnippet(name), { class: "button small", "aria-label": `Copy the ${name} lines` }));
}

setUpSettings(load);
setUpTabs((name) => name === "events" && events.update());
setUpImagine(events, refreshUsage);
listenForPictures(find("panel-chat"), field);
listen();
fillModels();
load();
document.documentElement.dataset.ready = "";

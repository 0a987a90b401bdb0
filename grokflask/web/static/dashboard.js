// Keeps the dashboard's figures fresh, shows forms in a dialog, copies secrets. The page also works without it, by links.

import { patch } from "./dashboard-patch.js";

const TURN_MS = 1000;
const REST = 10; // pause between refreshes of a section, at least, in multiples of the time that one took
const TIMEOUT_MS = 20_000;

const told = document.querySelector("[data-refresh-state]");
const parts = [...document.querySelectorAll("[data-part]")].map((element) => ({
  element,
  name: element.dataset.part,
  everyMs: Number(element.dataset.everyS) * 1000,
  dueAt: performance.now() + Number(element.dataset.everyS) * 1000,
}));
let failedAt = null;
let ended = false;

function tell(text, bad = false) {
  if (told.textContent !== text) told.textContent = text;
  told.dataset.state = bad ? "bad" : "";
}

function clock(date) {
  return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** Fetches a section and puts what has changed in its place. Throws what went wrong. */
async function refresh(part) {
  const began = performance.now();
  try {
    const reply = await fetch(`/admin/parts/${part.name}${location.search}`, {
      headers: { Accept: "text/html" },
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    if (reply.status === 401) {
      ended = true;
      return;
    }
    if (!reply.ok) throw new Error(`status ${reply.status}`);
    const fresh = new DOMParser().parseFromString(await reply.text(), "text/html");
    patch(part.element, fresh.body);
    showCopies();
  } finally {
    const now = performance.now();
    part.dueAt = now + Math.max(part.everyMs, (now - began) * REST);
  }
}

async function turn() {
  if (document.hidden) return;
  for (const part of parts) {
    if (ended || document.hidden || part.dueAt > performance.now()) continue;
    try {
      await refresh(part);
      failedAt = null;
    } catch {
      failedAt ??= new Date();
      break; // the others would fail as well; they are due still
    }
  }
  if (ended) tell("You have been signed out: reload the page to sign in again.", true);
  else if (failedAt) tell(`Not refreshed since ${clock(failedAt)}: the figures may be out of date. Retrying.`, true);
  else tell("Refreshes by itself");
}

async function run() {
  await turn();
  if (!ended) setTimeout(run, TURN_MS);
}

/** Shows the content of another dashboard page in the dialog. */
async function open(link) {
  const dialog = document.querySelector("dialog");
  const reply = await fetch(link.href, { headers: { Accept: "text/html" } });
  const page = new DOMParser().parseFromString(await reply.text(), "text/html");
  const content = page.querySelector("[data-dialog-content]");
  if (!reply.ok || !content) throw new Error("no dialog");
  if (content.matches("form") && !content.hasAttribute("action")) content.action = link.href;
  dialog.replaceChildren(document.adoptNode(content));
  dialog.setAttribute("aria-label", content.querySelector("h1").textContent);
  dialog.showModal();
}

async function copy(button) {
  const source = document.querySelector(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source); // without https there is no clipboard: select the text instead
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-dialog]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    open(link).catch(() => location.assign(link.href));
  }
  const close = event.target.closest("dialog [data-close]");
  if (close) {
    event.preventDefault();
    close.closest("dialog").close();
  }
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});

function showCopies() {
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
}

showCopies();
if (parts.length) {
  tell("Refreshes by itself");
  setTimeout(run, TURN_MS);
}

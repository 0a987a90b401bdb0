// Tabs as the ARIA practices have them: arrows go from one to the next, and only the chosen one is a tab stop.

import { find } from "./dom.js";

const NAMES = ["chat", "image", "events"];

/** `onChoose(name)` is called when a tab is shown. */
export function setUpTabs(onChoose) {
  const choose = (name, focus) => {
    for (const each of NAMES) {
      const tab = find(`tab-${each}`);
      tab.setAttribute("aria-selected", String(each === name));
      tab.tabIndex = each === name ? 0 : -1;
      find(`panel-${each}`).hidden = each !== name;
    }
    if (focus) find(`tab-${name}`).focus();
    onChoose(name);
  };
  for (const [index, name] of NAMES.entries()) {
    find(`tab-${name}`).addEventListener("click", () => choose(name, false));
    find(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      choose(NAMES[(index + step + NAMES.length) % NAMES.length], true);
    });
  }
}

// Elements, made without markup: whatever text they are given stays text.

export const find = (id) => document.getElementById(id);

/** An element with attributes (`on…` are listeners, false and null are left out) and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A quiet button. */
export function makeButton(label, onclick, attributes = {}) {
  return make("button", { type: "button", class: "button quiet small", onclick, ...attributes }, label);
}

/** A button that copies what `getText` says, and says that it did. */
export function makeCopyButton(label, getText, attributes = {}) {
  const button = makeButton(label, async () => {
    const done = await copy(getText());
    button.textContent = done ? "Copied" : "Select and copy it yourself";
    announce(done ? "Copied." : "Copying failed.");
    setTimeout(() => (button.textContent = label), 1600);
  }, attributes);
  return button;
}

/** Copies to the clipboard. Its API works only over HTTPS and on localhost; elsewhere execCommand is used. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = make("textarea", { class: "visually-hidden", readonly: true });
    field.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

/** Announces a text to screen readers. */
export function announce(text) {
  find("announcement").textContent = text;
}

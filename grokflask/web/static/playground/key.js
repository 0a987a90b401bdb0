// The key: kept in this tab's session only, sent to this gateway only.

const NAME = "grokflask-key";
let held = ""; // where storage is forbidden it lasts as long as the page

export function readKey() {
  try {
    return sessionStorage.getItem(NAME) ?? held;
  } catch {
    return held;
  }
}

/** Keeps `key`; "" forgets it. */
export function keepKey(key) {
  held = key;
  try {
    if (key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
  } catch {
    // as above
  }
}

/** What is shown of it: dots, and so few of its last characters that they are of no use. */
export function maskKey(key) {
  return `●●●●●●●● ${key.length >= 12 ? key.slice(-4) : ""}`.trim();
}

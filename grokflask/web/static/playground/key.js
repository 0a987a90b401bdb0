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

/** The key as it is shown: dots and its last four characters. */
export function maskKey(key) {
  return `●●●●●●●● ${key.length >= 12 ? key.slice(-4) : ""}`.trim();
}

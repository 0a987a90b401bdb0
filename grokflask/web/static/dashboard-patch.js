// Updates a part of the page from a fresh copy, and changes only what differs: focus, selected text, typed text and
// opened elements stay as they are.

const KEPT = new Set(["open", "hidden"]); // set by people or by the page's scripts

/** Whether the reader has selected something in `node`. */
function isSelected(node) {
  const selection = getSelection();
  return !selection.isCollapsed && selection.containsNode(node, true);
}

/** Whether the reader is using the element: then it stays, even if it is no longer in the copy. */
function isInUse(element) {
  return element.contains(document.activeElement) || isSelected(element);
}

function nameOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? (node.dataset?.id ?? (node.id || null)) : null;
}

function matches(old, fresh) {
  return old.nodeType === fresh.nodeType && old.nodeName === fresh.nodeName && nameOf(old) === nameOf(fresh);
}

function patchAttributes(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !KEPT.has(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (!KEPT.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
}

/** Brings the children of `old` in line with those of `fresh`, which may be emptied. */
export function patch(old, fresh) {
  let place = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    let found = place;
    while (found && !matches(found, wanted)) found = found.nextSibling;
    if (!found) {
      old.insertBefore(document.adoptNode(wanted), place);
      continue;
    }
    while (place !== found) {
      const next = place.nextSibling;
      if (place.nodeType !== Node.ELEMENT_NODE || !isInUse(place)) place.remove();
      place = next;
    }
    patchNode(found, wanted);
    place = found.nextSibling;
  }
  while (place) {
    const next = place.nextSibling;
    if (place.nodeType !== Node.ELEMENT_NODE || !isInUse(place)) place.remove();
    place = next;
  }
}

function patchNode(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue && !isSelected(old)) old.nodeValue = fresh.nodeValue;
    return;
  }
  patchAttributes(old, fresh);
  if (old.matches("select, textarea")) return; // what was chosen stays
  patch(old, fresh);
}

// Pictures for the model to look at: chosen, dropped or pasted, and sent within the message.

import { find, make, announce } from "./dom.js";
import { bootstrap } from "./gateway.js";

const TYPES = ["image/png", "image/jpeg"];
const MAX_BYTES = 20 * 2 ** 20; // xAI's limit for each
const MIB = 2 ** 20;

let attached = [];

export const readPictures = () => attached;

/** Replaces what is attached. */
export function attach(pictures) {
  attached = pictures;
  draw();
}

/** Why `file` cannot be sent; null when it can. */
function findProblem(file) {
  if (!TYPES.includes(file.type)) return `${file.name} is not a PNG or JPEG; the models accept no other formats.`;
  if (file.size > MAX_BYTES) return `${file.name} has ${(file.size / MIB).toFixed(1)} MiB; the models accept up to 20 MiB.`;
  const held = attached.reduce((sum, each) => sum + each.url.length, 0);
  // As text a picture is larger by a third.
  if (held + file.size * 4 / 3 > bootstrap.maxBodyBytes * 0.9) {
    return `${file.name} does not fit: a request to this gateway may have up to ${(bootstrap.maxBodyBytes / MIB).toFixed(1)} MiB, and a picture is a third larger in it.`;
  }
  return null;
}

async function addFiles(files) {
  const problems = [];
  for (const file of files) {
    const problem = findProblem(file);
    if (problem) {
      problems.push(problem);
      continue;
    }
    const url = await readFile(file);
    attached = [...attached, { name: file.name || "pasted picture", url }]; // not before: others may come meanwhile
  }
  draw();
  find("picture-problem").hidden = !problems.length;
  find("picture-problem").textContent = problems.join(" ");
  announce(problems.join(" ") || "Picture attached.");
}

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function draw() {
  const list = find("attached");
  list.hidden = !attached.length;
  find("picture-problem").hidden = true;
  list.replaceChildren(...attached.map((each) => make("li", {},
    make("img", { src: each.url, alt: each.name }),
    make("button", { type: "button", class: "button square small", "aria-label": `Remove ${each.name}`, onclick: () => attach(attached.filter((other) => other !== each)) }, "×"))));
}

/** Listens on the composer for pictures; `field` is where they may be pasted. */
export function listenForPictures(target, field) {
  const chooser = find("picture");
  find("attach").addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", async () => {
    await addFiles(chooser.files);
    chooser.value = "";
  });
  field.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    addFiles(files);
  });
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  target.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    target.dataset.dropping = "";
  });
  target.addEventListener("dragleave", (event) => {
    if (!target.contains(event.relatedTarget)) delete target.dataset.dropping;
  });
  target.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    delete target.dataset.dropping;
    addFiles(event.dataTransfer.files);
  });
}

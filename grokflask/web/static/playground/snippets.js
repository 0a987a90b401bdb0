// curl and Python code for the request of a turn, with $KEY for the key.

import { find } from "./dom.js";
import { bootstrap } from "./gateway.js";

const MAX_ARGUMENT = 100_000; // Linux takes 128 KiB in one word of a command

/** `text` as one word of a shell. */
export function quoteShell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** curl's command. A body that is too large for a command's word is read from a here-document. */
export function makeCurl(url, body, streams) {
  const json = JSON.stringify(body);
  const lines = [
    `curl ${streams ? "-N " : ""}${quoteShell(url)}`,
    '  -H "Authorization: Bearer $KEY"',
    "  -H 'Content-Type: application/json'",
  ];
  if (json.length < MAX_ARGUMENT) return [...lines, `  -d ${quoteShell(json)}`].join(" \\\n");
  return `${[...lines, "  -d @- <<'JSON'"].join(" \\\n")}\n${json}\nJSON`;
}

/** A JSON value as Python writes it. JSON's strings are Python's, too. */
export function toPython(value, indent = "") {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const entries = Array.isArray(value)
    ? value.map((each) => toPython(each, inner))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${toPython(each, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = `${open}${entries.join(", ")}${close}`;
  if (line.length < 80 && !line.includes("\n")) return line;
  return `${open}\n${entries.map((each) => `${inner}${each},\n`).join("")}${indent}${close}`;
}

const HEAD = (base) => `import os

from openai import OpenAI

client = OpenAI(api_key=os.environ.get("KEY") or "none", base_url=${JSON.stringify(base)})
`;

/** Python with OpenAI's SDK. */
export function makePython(base, path, body) {
  const options = Object.entries(body)
    .map(([name, value]) => `    ${name}=${toPython(value, "    ")},\n`)
    .join("");
  if (path.startsWith("/images")) return makeImagePython(base, body);
  if (hasPictures(body) && !bootstrap.visionStreams) {
    const whole = options.replace(/^ {4}stream(_options)?=.*\n/gm, "");
    return `${HEAD(base)}answer = client.chat.completions.create(\n${whole})\nprint(answer.choices[0].message.content)\n`;
  }
  return `${HEAD(base)}stream = client.chat.completions.create(\n${options})\nfor chunk in stream:\n    if chunk.choices:  # the last one has usage only\n        print(chunk.choices[0].delta.content or "", end="", flush=True)\nprint()\n`;
}

function makeImagePython(base, { model, prompt, n, response_format, ...rest }) {
  const known = { model, prompt, n, response_format, ...(Object.keys(rest).length ? { extra_body: rest } : {}) };
  const options = Object.entries(known).map(([name, value]) => `    ${name}=${toPython(value, "    ")},\n`).join("");
  return `import base64\n${HEAD(base)}images = client.images.generate(\n${options})
for number, image in enumerate(images.data):
    data = base64.b64decode(image.b64_json)
    kind = "png" if data.startswith(b"\\x89PNG") else "jpg"
    with open(f"image-{number}.{kind}", "wb") as file:
        file.write(data)
    print(file.name)
`;
}

function hasPictures(body) {
  return body.messages.some(({ content }) => Array.isArray(content));
}

/** What is shown of a snippet: a picture in full would be megabytes. */
function shorten(text) {
  return text.replace(/(data:image\/\w+;base64,.{24})[^"]{40,}/g, "$1…");
}

let shown = { curl: "", python: "" };

/** Shows the lines for a request. */
export function openSnippets(path, body) {
  const base = location.origin + bootstrap.prefix;
  shown = { curl: makeCurl(base + path, body, Boolean(body.stream)), python: makePython(base, path, body) };
  for (const [name, text] of Object.entries(shown)) find(`snippet-${name}`).textContent = shorten(text);
  find("snippets").showModal();
}

export const readSnippet = (name) => shown[name];

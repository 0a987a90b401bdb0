// Below an answer: its figures, and notices about changes.

import { showCount, showDuration, showMoney } from "../format.js";
import { make } from "./dom.js";
import { bootstrap } from "./gateway.js";

/** The line of figures, as elements. */
export function makeFacts(answer) {
  const { usage } = answer;
  const facts = [];
  const add = (text, title) => facts.push(make("span", { class: "figure", title }, text));
  if (usage?.completion_tokens !== undefined) {
    const thought = usage.completion_tokens_details?.reasoning_tokens;
    const cached = usage.prompt_tokens_details?.cached_tokens;
    add(`${showCount(usage.completion_tokens)} tokens`,
      `prompt ${usage.prompt_tokens}${cached ? ` (${cached} of them cached)` : ""}, answer ${usage.completion_tokens}, total ${usage.total_tokens}`);
    if (thought) add(`${showCount(thought)} reasoning`, "reasoning tokens, charged as output");
  }
  if (answer.tokensPerS !== null) add(`${Math.round(answer.tokensPerS)}/s`, "tokens a second, from the first to the last");
  if (answer.firstMs !== null && !answer.fallback) add(`first ${showDuration(answer.firstMs)}`, "from sending to the first token");
  add(showDuration(answer.elapsedMs), "from sending to the end");
  if (usage?.cost_in_usd_ticks !== undefined) add(showMoney(usage.cost_in_usd_ticks), `${usage.cost_in_usd_ticks} ticks; 10,000,000,000 are 1 USD`);
  return facts;
}

/** What the reader should know about this answer. */
export function makeNotices(answer) {
  const notices = [];
  const add = (state, text) => notices.push(make("p", { class: "notice small", "data-state": state }, text));
  const served = answer.served ?? (answer.model === answer.body.model ? null : answer.model);
  if (answer.state === "stopped") add("warn", bootstrap.cancels ? "Stopped. The gateway has cancelled the model's answer too, so you do not pay for the rest." : "Stopped. The text so far is kept.");
  if (answer.fallback) add("warn", `The answer was not streamed (X-Stream-Fallback: ${answer.fallback}).`);
  if (served) add("muted", `You requested ${answer.body.model}; ${served} answered.`);
  if (answer.dropped) add("muted", `Removed, because the model would reject it: ${answer.dropped}.`);
  if (answer.finish === "length") add("warn", "The answer reached the token limit. Raise “Max tokens” for more.");
  if (answer.finish === "content_filter") add("warn", "The model's content filter ended the answer.");
  if (answer.state === "complete" && !answer.text && !answer.toolCalls.length) add("muted", "The answer is empty.");
  return notices;
}

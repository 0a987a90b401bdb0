// Yields the server-sent events of a response's body as they arrive: {data} for an event, {comment} for a comment.
// The gateway writes one `data:` line and a blank line, with LF. Changes that a proxy may make to these are accepted.

export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const each of lines) {
        const line = each.endsWith("\r") ? each.slice(0, -1) : each;
        if (line === "") {
          if (data.length) yield { data: data.join("\n") };
          data = [];
        } else if (line.startsWith(":")) {
          yield { comment: line };
        } else if (line.startsWith("data:")) {
          data.push(line.startsWith("data: ") ? line.slice(6) : line.slice(5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // stop reading closes the connection, too
  }
}

// Figures as people read them: money, tokens, times. As `web/formats.py` writes them on the server.

const TICKS_PER_USD = 1e10;
const THIN_SPACE = "\u2009";

function group(text) {
  return text.replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

/** Ticks in USD: cents from one dollar on, and more decimal places below. */
export function showMoney(ticks) {
  if (ticks === null || ticks === undefined) return "–";
  if (ticks === 0) return "$0";
  const usd = ticks / TICKS_PER_USD;
  const sign = usd < 0 ? "-" : "";
  const size = Math.abs(usd);
  if (size >= 1) {
    const [whole, cents] = size.toFixed(2).split(".");
    return `${sign}$${group(whole)}.${cents}`;
  }
  return size < 0.00005 ? "<$0.0001" : `${sign}$${size.toFixed(4)}`;
}

/** A number in groups of three, with thin spaces between them. */
export function showCount(number) {
  if (number === null || number === undefined) return "–";
  return group(String(number)).replaceAll(",", THIN_SPACE);
}

/** Milliseconds: `340 ms`, `2.1 s`, `3 min 20 s`. */
export function showDuration(milliseconds) {
  if (milliseconds === null || milliseconds === undefined) return "–";
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

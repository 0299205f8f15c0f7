/* Every <time datetime="..."> reads "3 min ago"; the exact time stands in its title.
   <time data-absolute> is left alone. Times that arrive later are found too. */

const MINUTE = 60, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });

/** Seconds as people say them: "45 s", "3 min", "1 h 20 min", "2 days". */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < HOUR) return `${Math.round(s / MINUTE)} min`;
  if (s < DAY) {
    const minutes = Math.round(s / MINUTE);
    return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
  }
  const days = Math.round(s / DAY);
  return days === 1 ? "1 day" : `${days} days`;
}

/** `date` as seen from `now` (both Date). Beyond 30 days: the date itself. */
export function relative(date, now = new Date()) {
  const seconds = (now - date) / 1000;
  if (Math.abs(seconds) < 10) return "just now";
  if (Math.abs(seconds) > 30 * DAY) return day.format(date);
  return seconds > 0 ? `${duration(seconds)} ago` : `in ${duration(-seconds)}`;
}

function refresh() {
  const now = new Date();
  for (const element of document.querySelectorAll("time[datetime]:not([data-absolute])")) {
    const date = new Date(element.dateTime);
    if (Number.isNaN(date.getTime())) continue; // a duration or a bare hour: leave what the server wrote
    const text = relative(date, now);
    if (element.textContent !== text) element.textContent = text;
    element.title = exact.format(date);
  }
}

refresh();
setInterval(refresh, 20_000);
new MutationObserver((changes) => {
  const added = changes.some((change) =>
    [...change.addedNodes].some((node) => node.nodeType === 1 && (node.matches("time") || node.querySelector("time"))));
  if (added) refresh();
}).observe(document.body, { childList: true, subtree: true });

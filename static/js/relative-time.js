/* Every <time datetime="..."> reads "3 min ago"; the exact time stands in its title.
   <time data-absolute> is left alone. Times that arrive later are found too. */

import { duration } from "./duration.js";

const MONTH_SECONDS = 30 * 24 * 3600;
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });

/** `date` as seen from `now` (both Date). Beyond 30 days: the date itself. */
function relative(date, now) {
  const seconds = (now - date) / 1000;
  if (Math.abs(seconds) < 10) return "just now";
  if (Math.abs(seconds) > MONTH_SECONDS) return day.format(date);
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

/* A run's page: stage, epoch, device and log follow the answers that js/progress.js gets; seconds become durations. */

import { duration } from "./duration.js";

const write = (name, text) => {
  const element = document.querySelector(`[data-run-${name}]`);
  if (element && text !== undefined && element.textContent !== text) element.textContent = text;
};

/** The log stays at its end while the reader has not scrolled up. */
function writeLog(text) {
  const log = document.querySelector("[data-run-log]");
  if (!log || !text || log.textContent === text) return;
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
  log.textContent = text;
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

document.addEventListener("progress:update", ({ detail }) => {
  for (const name of ["stage", "epoch", "device"]) write(name, detail[name]);
  writeLog(detail.log);
});

for (const element of document.querySelectorAll("[data-seconds]")) {
  element.textContent = duration(Number.parseFloat(element.dataset.seconds));
}
const log = document.querySelector("[data-run-log]");
if (log) log.scrollTop = log.scrollHeight;

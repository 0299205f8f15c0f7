/* Pages of training. A run's page: stage, epoch, device, queue and log follow the answers that js/progress.js gets;
   seconds become durations. A form: what the run will cost, asked again when a value changes. The list: two runs are
   compared, no more and no fewer. */

import { duration } from "./duration.js";
import { NoAnswer, json } from "./server.js";

const ASK_AFTER_MS = 500; // of quiet: not at every key
const UNITS = ["B", "kB", "MB", "GB", "TB"];

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
  for (const name of ["stage", "epoch", "device", "queue"]) write(name, detail[name]);
  document.querySelector("[data-run-queue]")?.toggleAttribute("hidden", !detail.queue);
  writeLog(detail.log);
});

/** Bytes as people say them, in powers of 1000. */
function size(bytes) {
  const power = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), UNITS.length - 1);
  return `${Number((bytes / 1000 ** power).toPrecision(2))} ${UNITS[power]}`;
}

function showCost(box, cost) {
  const told = !cost.problem;
  box.querySelector("[data-cost-figures]").textContent = told
    ? `About ${duration(cost.seconds)} and ${size(cost.bytes)} of disk.`
    : cost.problem;
  box.querySelector("[data-cost-basis]").textContent = told ? cost.basis : "";
}

/** The newest question counts: an answer that comes after another change is dropped. */
function followForm(box) {
  const form = box.closest("form");
  let asked = 0;
  let timer = null;
  const ask = async () => {
    asked += 1;
    const mine = asked;
    let cost;
    try {
      cost = await json(box.dataset.url, { method: "POST", body: new FormData(form) });
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
      cost = { problem: `It could not be asked: ${error.message}.` };
    }
    if (mine === asked) showCost(box, cost);
  };
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(ask, ASK_AFTER_MS);
  });
  if (["study", "export", "train_data_dir"].some((name) => form.elements[name]?.value)) ask();
}

function followChoice(button) {
  const boxes = [...button.form.elements].filter((element) => element.name === "run");
  const update = () => { button.disabled = boxes.filter((box) => box.checked).length !== 2; };
  for (const box of boxes) box.addEventListener("change", update);
  update();
}

for (const element of document.querySelectorAll("[data-seconds]")) {
  element.textContent = duration(Number.parseFloat(element.dataset.seconds));
}
for (const box of document.querySelectorAll("[data-cost]")) followForm(box);
for (const button of document.querySelectorAll("[data-compare]")) followChoice(button);
const log = document.querySelector("[data-run-log]");
if (log) log.scrollTop = log.scrollHeight;

/* Live progress: every [data-progress][data-url] is polled each 2 s while its job is queued or running and the page is visible.
   The answer is {state, done, total, unit, eta_seconds, error}. Fires "progress:update" and "progress:finished"
   (bubbling, detail = the answer). With data-reload the page loads again when the job ends. */

import { announce } from "./announce.js";
import { duration } from "./duration.js";
import { NoAnswer, json } from "./server.js";

const INTERVAL_MS = 2000;
const LONGEST_WAIT_MS = 30_000;
const ENDED = new Set(["succeeded", "failed", "cancelled"]);

const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1);
const part = (box, name) => box.querySelector(`[data-progress-${name}]`);

function showBar(box, job, state) {
  const bar = box.querySelector("progress");
  if (job.total) {
    bar.max = job.total;
    bar.value = Math.min(job.done ?? 0, job.total);
  } else if (state === "running") {
    bar.removeAttribute("value"); // length unknown
  } else {
    bar.max = 1;
    bar.value = state === "succeeded" ? 1 : 0;
  }
}

function showEta(box, state, seconds) {
  const known = state === "running" && Number.isFinite(seconds);
  part(box, "eta").textContent = known ? `about ${duration(seconds)} left` : "";
}

/** Write `job` into the box; returns its state in lower case. */
function show(box, job) {
  const state = String(job.state).toLowerCase();
  box.dataset.state = state;
  const badge = part(box, "state");
  badge.className = `badge state-${state}`;
  badge.textContent = capital(state);
  part(box, "count").textContent = job.total ? `${job.done ?? 0} / ${job.total} ${job.unit ?? ""}`.trim() : "";
  part(box, "error").textContent = job.error ?? "";
  showEta(box, state, job.eta_seconds);
  showBar(box, job, state);
  return state;
}

/** Screen readers hear every quarter, and the end. */
function tell(box, job, state, told) {
  const quarter = job.total ? Math.floor((4 * (job.done ?? 0)) / job.total) : 0;
  const key = ENDED.has(state) ? state : `${state} ${quarter}`;
  if (key === told) return key;
  const share = state === "running" && quarter ? `, ${quarter * 25} percent` : "";
  if (told !== null) announce(`${box.dataset.label}: ${state}${share}`);
  return key;
}

/** What to do about it, where asking again is no use; or null. */
function remedy({ isSignedOut, status }) {
  if (isSignedOut) return "You are signed out. Reload the page to sign in and see the progress.";
  return status === 404 ? "This job no longer exists. Reload the page." : null;
}

function watch(box) {
  let told = null;
  let wait = INTERVAL_MS;
  let timer = null;
  let isAsking = false;

  const later = () => { timer = setTimeout(step, wait); };

  const end = (job) => {
    box.dispatchEvent(new CustomEvent("progress:finished", { bubbles: true, detail: job }));
    if ("reload" in box.dataset) setTimeout(() => location.reload(), 600);
  };

  const step = async () => {
    timer = null;
    if (document.hidden || isAsking) return; // taken up again by visibilitychange, or by the answer
    isAsking = true;
    try {
      const job = await json(box.dataset.url);
      wait = INTERVAL_MS;
      const state = show(box, job);
      told = tell(box, job, state, told);
      box.dispatchEvent(new CustomEvent("progress:update", { bubbles: true, detail: job }));
      if (ENDED.has(state)) return end(job);
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
      const advice = remedy(error);
      if (advice) {
        part(box, "error").textContent = advice;
        return;
      }
      wait = Math.min(2 * wait, LONGEST_WAIT_MS);
      part(box, "eta").textContent = `${error.message}, trying again in ${duration(wait / 1000)}`;
    } finally {
      isAsking = false;
    }
    later();
  };

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && timer === null && !ENDED.has(box.dataset.state)) step();
  });
  step();
}

for (const box of document.querySelectorAll("[data-progress]")) {
  showEta(box, box.dataset.state, Number.parseFloat(part(box, "eta").dataset.etaSeconds ?? ""));
  if (box.dataset.url && !ENDED.has(box.dataset.state)) watch(box);
}

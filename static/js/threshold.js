/* The threshold slider of a job's page: which of its candidates would pass at another threshold, and how many of the
   images asked for would be found. It works on the scores the server gives; nothing stored is touched. */

import { percent } from "./percent.js";
import { NoAnswer, json } from "./server.js";

const panel = document.getElementById("threshold");
const gallery = document.getElementById("gallery");
const slider = panel.querySelector("input");
const output = panel.querySelector("output");
const said = panel.querySelector("[data-said]");
const newJob = panel.querySelector("[data-new-job]");
let scores = { threshold: null, places: 0, candidates: [] };
let asked = 0;

const passes = (selector, policy) => Math.min(selector, policy) >= Number(slider.value);
const plural = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** What a card says while the slider disagrees with its stored verdict. */
function mark(card) {
  const would = passes(Number(card.dataset.selector), Number(card.dataset.policy));
  const differs = would !== !card.classList.contains("is-rejected");
  card.classList.toggle("would-not-pass", !would);
  let note = card.querySelector("[data-would]");
  if (!differs) return note?.remove();
  if (!note) {
    note = document.createElement("span");
    note.dataset.would = "";
    note.className = "badge";
    card.querySelector(".image-card-body").append(note);
  }
  note.textContent = would ? "would pass" : "would not pass";
}

function show() {
  const threshold = Number(slider.value).toFixed(2);
  output.textContent = threshold;
  const passing = scores.candidates.filter(([, selector, policy]) => passes(selector, policy));
  const found = new Set(passing.map(([place]) => place)).size;
  const all = scores.candidates.length;
  const share = all ? ` (${percent(Math.round((100 * passing.length) / all))})` : "";
  said.textContent = `${passing.length} of ${plural(all, "candidate")} would pass${share}; ${found} of ${plural(scores.places, "image")} would be found.`;
  newJob.href = `${panel.dataset.again}&threshold=${threshold}`;
  newJob.textContent = `New job at ${threshold}`;
  for (const card of gallery.querySelectorAll("a.image-card[data-selector]")) mark(card);
}

/** The newest question counts: an answer that comes after a later one's is dropped. */
async function load() {
  asked += 1;
  const mine = asked;
  let fresh;
  try {
    fresh = await json(panel.dataset.url);
  } catch (error) {
    if (error instanceof NoAnswer) return; // the progress bar tells, and the next news brings the scores
    throw error;
  }
  if (mine !== asked) return;
  const isFirst = scores.threshold === null;
  scores = fresh;
  if (isFirst) slider.value = scores.threshold ?? 0.6;
  panel.hidden = scores.candidates.length === 0;
  show();
}

slider.addEventListener("input", show);
gallery.addEventListener("gallery:update", load);
load();

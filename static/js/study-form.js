/* The forms of a study's protocol: what the study will come to, in a line at the foot that the server words anew as the
   form changes; which key each defect gets; and readers per image only where an open pool asks for them. */

import { NoAnswer, json } from "./server.js";

const AFTER_MS = 300; // of no further change
const UNTOLD = /^(csrfmiddlewaretoken|name|description|reason|scale_\d|own_defects|anchor_.*)$/; // changes no number
const form = document.querySelector("[data-study-form]");
const plan = document.querySelector("[data-plan]");
const keys = document.querySelector("[data-defect-keys]");
let timer = null;
let asked = 0;

function paragraph(text, index) {
  const element = document.createElement("p");
  element.textContent = text;
  if (index) element.className = "secondary small";
  return element;
}

/** Nothing is put where it stands already: screen readers would say it again at every key. */
function put(element, parts) {
  const text = parts.map((part) => part.textContent ?? part).join("");
  if (element.textContent !== text) element.replaceChildren(...parts);
}

async function showPlan() {
  asked += 1;
  const mine = asked;
  const given = [...new FormData(form)].filter(([name]) => !UNTOLD.test(name));
  try {
    const { lines } = await json(`${form.dataset.planned}?${new URLSearchParams(given)}`);
    if (mine === asked) put(plan, lines.map(paragraph));
  } catch (error) {
    if (!(error instanceof NoAnswer)) throw error; // the last line stays
  }
}

/** Labels of the defects in the order of their keys: the marked standard ones, then those of one's own. */
function defects() {
  const standard = [...form.querySelectorAll("[name=defects]:checked")].map((box) => box.closest("label").textContent.trim());
  const own = form.elements.own_defects.value.split("\n").map((line) => line.trim()).filter(Boolean);
  return [...standard, ...own.map((line) => line.slice(line.indexOf(":") + 1).trim())];
}

function showKeys() {
  const letters = [...keys.dataset.defectKeys];
  const parts = defects().flatMap((label, index) => {
    const key = document.createElement("kbd");
    key.textContent = letters[index] ?? "–"; // more than there are keys: the server says so
    return [key, ` ${label}   `];
  });
  put(keys, parts.length ? parts : ["No defects: the rating page shows no chips."]);
}

function showTarget() {
  const isPool = form.querySelector("[name=overlap]:checked")?.value === "some";
  form.elements.overlap_target.closest(".field").hidden = !isPool;
}

function show() {
  showTarget();
  showKeys();
  if (!plan) return;
  clearTimeout(timer);
  timer = setTimeout(showPlan, AFTER_MS);
}

form.addEventListener("input", show);
show();

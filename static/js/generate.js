/* The generation form: an example goes into the prompt box, the slider shows its value, and fields that only matter
   with the filter (data-only-mode) are there only while it is chosen. Without this script the form works all the same:
   the examples are links that fill the box, and every field is visible. */

import { announce } from "./announce.js";

const form = document.getElementById("generate-form");
const box = form.elements.prompts;

const examples = Array.from(form.querySelectorAll("[data-prompt]"), (link) => link.dataset.prompt);
let placed = examples.find((example) => example === box.defaultValue); // by the last press, or by its link

/* Puts an example into the box; returns what to say of it. What somebody typed stays: only the example that was put
   there before gives way, while it is all there is. */
function fillIn(example) {
  const lines = box.value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (lines.includes(example)) return "The prompt is in the box already";
  if (lines.length && box.value !== placed) {
    box.value = `${box.value.trimEnd()}\n${example}`;
    return `Added to the box, which holds ${lines.length + 1} prompts`;
  }
  placed = box.value = example;
  return "Prompt filled in";
}

form.addEventListener("click", (event) => {
  const example = event.target.closest("[data-prompt]");
  if (!example || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const said = fillIn(example.dataset.prompt);
  box.focus();
  box.setSelectionRange(box.value.length, box.value.length);
  announce(said);
});

const slider = form.elements.quality_threshold;
const output = form.querySelector("[data-range-value]");
const showValue = () => { output.textContent = Number(slider.value).toFixed(2); };
slider.addEventListener("input", showValue);
showValue();

function showMode() {
  for (const part of form.querySelectorAll("[data-only-mode]")) {
    part.hidden = part.dataset.onlyMode !== form.elements.mode.value;
  }
}
form.addEventListener("change", showMode);
showMode();

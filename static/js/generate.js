/* The generation form: examples go into the prompt box, the slider shows its value, and fields that only matter
   with the filter (data-only-mode) are there only while it is chosen. Without this script the form works all the same:
   the examples are links that fill the box, and every field is visible. */

import { announce } from "./announce.js";

const form = document.getElementById("generate-form");
const box = form.elements.prompts;

form.addEventListener("click", (event) => {
  const example = event.target.closest("[data-prompt]");
  if (!example || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  box.value = example.dataset.prompt;
  box.focus();
  announce("Prompt filled in");
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

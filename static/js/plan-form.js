/* Planning a calibration: of the jobs only those of the chosen release are shown, and only those are sent. */

const release = document.querySelector("form [name=release]");
const groups = [...document.querySelectorAll("[data-release]")];
const noneChosen = document.querySelector("[data-none-chosen]");
const noneFits = document.querySelector("[data-none-fits]");

function show() {
  for (const group of groups) group.hidden = group.disabled = group.dataset.release !== release.value;
  noneChosen.hidden = release.value !== "";
  noneFits.hidden = release.value === "" || groups.some((group) => !group.hidden);
}

release.addEventListener("input", show);
addEventListener("pageshow", show); // a browser that comes back to the page restores what was chosen
show();

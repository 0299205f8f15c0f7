// <button data-copy="id of an input">: copies what the input holds, and says so.
import { announce } from "./announce.js";

for (const button of document.querySelectorAll("[data-copy]")) {
  const field = document.getElementById(button.dataset.copy);
  button.addEventListener("click", async () => {
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
      button.textContent = "Copied";
      announce("The link is copied.");
    } catch {
      // Without a secure connection browsers refuse: the text is selected, the keys copy it.
      announce("The browser did not allow copying. The link is selected: press Ctrl and C.");
      button.textContent = "Press Ctrl+C";
    }
  });
}

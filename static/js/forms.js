/* What every form gets. A field that the browser refuses is brought into view: folded away or hidden it would keep the
   form from being sent without a word. The first one that the server refused has the focus when the page opens. And a
   POST is sent once, however often its button is pressed. */

const AGAIN_AFTER_MS = 10_000; // whoever stopped the page may send again
const sentAt = new WeakMap(); // by form

function bringIntoView(field) {
  for (let part = field.parentElement; part; part = part.parentElement) {
    if (part.matches("details")) part.open = true;
    part.hidden = false;
  }
}
document.addEventListener("invalid", ({ target }) => bringIntoView(target), { capture: true }); // it does not bubble

const refused = document.querySelector("main [aria-invalid=true]:enabled");
if (refused) {
  bringIntoView(refused);
  refused.focus();
  if (refused.autocomplete === "one-time-code") refused.select(); // a wrong code is no draft: the next one replaces it
}

// On the window: js/confirm.js, which may hold a form back, has had its turn.
addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.getAttribute("method") !== "post") return;
  if (event.timeStamp - (sentAt.get(form) ?? -Infinity) < AGAIN_AFTER_MS) event.preventDefault();
  else sentAt.set(form, event.timeStamp);
});
addEventListener("pageshow", ({ persisted }) => {
  if (persisted) for (const form of document.forms) sentAt.delete(form); // back from the next page
});
